//! Classes of faults beyond those that every life has. Each can be switched on and off by itself.

use super::random::Random;

/// A class of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Calls are dropped at any time: clients close their connections in the middle of a request,
    /// administrators in the middle of a hand-over.
    Drops,
    /// The same for changes of the membership.
    DroppedChanges,
    /// The group grows to five and shrinks again.
    Members,
    /// Ids that were removed come back with empty disks.
    Returns,
    /// The group is formed by an administrator and names the disks of its nodes.
    Formed,
    /// A disk says that something is durable which is not, and then loses its power.
    Lies,
    /// One copy of a vote, of hints or of marks is damaged.
    Copies,
    /// One checkpoint of one node is damaged.
    Checkpoints,
    /// The same place of the log is damaged on two nodes of three.
    SamePlace,
    /// A node is down while the others delete what it lacks, or what it has damaged.
    LongDown,
    /// The disk of a node is replaced by an older copy of itself.
    OlderDisk,
    /// Sends are acknowledged before they are synced, and single nodes lose their power.
    Async,
    /// Snapshots take many parts.
    Parts,
    /// Clocks run at half and at twice the speed of others.
    Drift,
    /// Ports refuse connections for a moment though their process lives.
    Refused,
    /// A hand-over fails because its target dies, while clients ask the leader.
    FailedTransfer,
    /// A leader that was replaced leads again at once, while clients ask it.
    Relapse,
}

/// Every class, its name, and whether it is on unless somebody chooses others. One that finds a defect
/// may be off until that is mended.
pub const CLASSES: [(Class, &str, bool); 17] = [
    (Class::Drops, "drops", true),
    (Class::DroppedChanges, "dropped-changes", true),
    (Class::Members, "members", true),
    (Class::Returns, "returns", true),
    (Class::Formed, "formed", true),
    (Class::Lies, "lies", true),
    (Class::Copies, "copies", true),
    (Class::Checkpoints, "checkpoints", true),
    (Class::SamePlace, "same-place", true),
    (Class::LongDown, "long-down", true),
    (Class::OlderDisk, "older-disk", true),
    (Class::Async, "async", true),
    (Class::Parts, "parts", true),
    (Class::Drift, "drift", true),
    (Class::Refused, "refused", true),
    (Class::FailedTransfer, "failed-transfer", true),
    (Class::Relapse, "relapse", true),
];

/// Tells the classes of a seed from everything else that it decides.
const SALT: u64 = 0x0c1a_55e5;

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Classes {
    members: u32,
    /// Every life has all of them, instead of some.
    always: bool,
}

impl Classes {
    /// Those that `text` names, separated by commas, in every life; `all` and `none` are what they
    /// say, and each life then has half of all. Without a text, each life has half of those that are
    /// on.
    ///
    /// # Panics
    /// When a name is none.
    #[must_use]
    pub fn chosen(text: Option<&str>) -> Self {
        let mut chosen = Self::default();
        match text {
            None => chosen.take(|(_, _, on)| *on),
            Some("none") => {}
            Some("all") => chosen.take(|_| true),
            Some(names) => {
                chosen.always = true;
                for name in names.split(',') {
                    let before = chosen.members;
                    chosen.take(|(_, known, _)| *known == name);
                    assert!(before != chosen.members, "no class is called {name}");
                }
            }
        }
        chosen
    }

    fn take(&mut self, wanted: impl Fn(&(Class, &str, bool)) -> bool) {
        for row in CLASSES.iter().filter(|row| wanted(row)) {
            self.members |= 1 << row.0 as u32;
        }
    }

    /// What the life of this seed has of them. Whether one is there does not depend on others.
    #[must_use]
    pub fn of_life(self, seed: u64) -> Self {
        let mut random = Random::new(seed ^ SALT);
        let drawn = random.number() as u32;
        Self {
            members: if self.always {
                self.members
            } else {
                self.members & drawn
            },
            always: true,
        }
    }

    /// Whether a class is one of them.
    #[must_use]
    pub fn has(self, class: Class) -> bool {
        self.members & (1 << class as u32) != 0
    }
}

#[test]
fn classes_are_chosen_by_name_and_each_life_has_some_of_all() {
    let some = Classes::chosen(Some("drift,lies"));
    assert!(some.has(Class::Drift) && some.has(Class::Lies) && !some.has(Class::Drops));
    assert_eq!(some.of_life(7).members, some.members);
    assert_eq!(Classes::chosen(Some("none")).members, 0);
    let all = Classes::chosen(Some("all"));
    let lives = (0..100).filter(|seed| all.of_life(*seed).has(Class::Relapse));
    assert!((30..70).contains(&lives.count()));
}
