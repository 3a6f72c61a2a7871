//! Incarnations (`broker/replica/src/raft/members.rs`, raft:I1, and `server.rs`, raft:I2): a node that lost its
//! disk comes back under its old id and knows neither its votes nor its log. It must neither vote nor
//! receive the log, or a quorum forgets.
//!
//! The members are those of the first entry, which every log begins with: a node with an empty log
//! knows none. At most one disk is lost of those that the membership names; a group of three stands no
//! more. The node that lost it may be taken out of the group, and taken in again with its new disk:
//! two further entries, the second of which is written when the first is committed. Elections and
//! replication are one step with their answers.

use super::checker::{Model, holds, refuted};
use super::log::Log;

/// Most nodes.
const NODES: usize = 4;
const KEPT: &str = "a leader has all that was committed";
const ONE_LEADER: &str = "one leader a term";
const REACHED: &str = "a leader reaches every member that its log names";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A node is known by its id alone.
    IdsOnly,
    /// Only the node that is connected to looks.
    OneEnd,
    /// A leader does not look who acknowledges its entries.
    AnyAcknowledgement,
    /// A follower takes entries only from a leader that its own log names.
    FollowerLooks,
    /// The new disk takes the place of the lost one in one step.
    Swap,
    /// Who waits to be formed into a group helps everybody.
    WaitingHelps,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    /// `by`: who else, a bit each.
    Elect {
        node: usize,
        by: u8,
    },
    Write(usize),
    Append {
        from: usize,
        to: usize,
    },
    Restart(usize),
    LoseDisk(usize),
    Remove(usize),
    Add(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    term: u8,
    leads: bool,
    log: Log,
    matched: [u8; NODES],
    /// Whether this is not the disk that the membership names.
    is_other_disk: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    nodes: [Node; NODES],
    committed: Log,
    leaders: [u8; 6],
    losses: u8,
    restarts: u8,
    /// Who lost a disk.
    lost: Option<usize>,
    /// Index and term of the entry that takes it out of the group, and of the one that takes it in
    /// again with its new disk.
    removed: Entry,
    added: Entry,
}

/// `None`: never written.
type Entry = Option<(u8, u8)>;

/// What the log of a node says of the one that lost its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    OldDisk,
    NobodyThere,
    NewDisk,
}

impl State {
    fn named(&self, by: &Node) -> Named {
        let has = |entry: Entry| entry.is_some_and(|(index, term)| by.log.term(index) == term);
        match (has(self.removed), has(self.added)) {
            (_, true) => Named::NewDisk,
            (true, false) => Named::NobodyThere,
            (false, false) => Named::OldDisk,
        }
    }

    /// Whether node `id` is a member by the log of `by`.
    fn is_member(&self, by: &Node, id: usize) -> bool {
        self.lost != Some(id) || self.named(by) != Named::NobodyThere
    }
}

struct Incarnations {
    defect: Defect,
    /// Whether the membership names the disks. If it does not, a node that comes back empty can be
    /// told from others only as long as it has nothing: what follows is for the guard.
    are_named: bool,
    nodes: usize,
    terms: u8,
    entries: u8,
    restarts: u8,
}

impl Model for Incarnations {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[ONE_LEADER, KEPT, REACHED];

    fn start(&self) -> State {
        let mut state = State::default();
        for node in state.nodes.iter_mut().take(self.nodes) {
            node.term = 1;
            node.log.push(1);
        }
        state.nodes[0].leads = true;
        state.nodes[0].matched[0] = 1;
        state.leaders[1] = 1;
        state.committed.push(1);
        state
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        for at in 0..self.nodes {
            let node = &state.nodes[at];
            if node.leads && node.log.len() < self.entries {
                let mut next = *state;
                next.nodes[at].log.push(node.term);
                next.nodes[at].matched[at] += 1;
                then(Action::Write(at), next);
            }
            if state.restarts < self.restarts {
                let mut next = *state;
                next.restarts += 1;
                next.nodes[at] = follower(node, node.term);
                then(Action::Restart(at), next);
            }
            if state.losses == 0 {
                let mut next = *state;
                next.losses += 1;
                next.lost = Some(at);
                next.nodes[at] = Node {
                    is_other_disk: true,
                    ..Node::default()
                };
                then(Action::LoseDisk(at), next);
            }
            self.change(state, at, then);
            if !state.is_member(node, at) {
                continue;
            }
            self.elect(state, at, then);
            for other in self.members(state, node).filter(|other| *other != at) {
                let to = &state.nodes[other];
                if self.may_lead(state, node, to) && (self.are_named || !to.is_other_disk) {
                    self.append(state, (at, other), then);
                }
            }
        }
    }

    fn keeps(&self, state: &State, promise: &str) -> bool {
        if promise == ONE_LEADER {
            return state.leaders.iter().all(|who| who.count_ones() <= 1);
        }
        if promise == REACHED {
            return self.reaches_all(state);
        }
        let (term, _) = state.committed.last();
        let mut later = state
            .nodes
            .iter()
            .filter(|node| node.leads && node.term >= term);
        later.all(|leader| leader.log.has(&state.committed))
    }
}

impl Incarnations {
    /// A leader takes the node that lost its disk out of the group and in again.
    fn change(&self, state: &State, at: usize, then: &mut dyn FnMut(Action, State)) {
        let node = &state.nodes[at];
        let can = node.leads && node.log.len() < self.entries && state.lost != Some(at);
        if !can || state.lost.is_none() || !self.are_named {
            return;
        }
        let mut next = *state;
        next.nodes[at].log.push(node.term);
        next.nodes[at].matched[at] += 1;
        let entry = Some((node.log.len() + 1, node.term));
        let swaps = self.defect == Defect::Swap;
        if state.removed.is_none() && !swaps {
            next.removed = entry;
            then(Action::Remove(at), next);
            return;
        }
        let is_out = state.named(node) == Named::NobodyThere;
        let is_committed =
            (state.removed).is_some_and(|(index, _)| index <= self.committed_by(state, at));
        if state.added.is_none() && (swaps || is_out && is_committed) {
            next.added = entry;
            then(Action::Add(at), next);
        }
    }

    /// Whether every leader can send to every member that it names, with the disk that it names.
    fn reaches_all(&self, state: &State) -> bool {
        let leaders = state.nodes.iter().filter(|node| node.leads);
        leaders.into_iter().all(|leader| {
            let mut named = self
                .members(state, leader)
                .map(|id| &state.nodes[id])
                .filter(|peer| self.takes(state, leader, peer));
            named.all(|peer| self.may_lead(state, leader, peer))
        })
    }

    /// Whether a node takes another for the member that its log names.
    fn takes(&self, state: &State, own: &Node, peer: &Node) -> bool {
        let knows_members = own.log.len() > 0;
        // The old disk is gone: whoever is not the other is no stranger.
        let is_stranger = peer.is_other_disk && state.named(own) == Named::OldDisk;
        !knows_members || !self.are_named || !is_stranger
    }

    /// Whether a connection for votes comes about.
    fn may_elect(&self, state: &State, from: &Node, to: &Node) -> bool {
        match self.defect {
            Defect::IdsOnly => true,
            Defect::OneEnd => self.takes(state, to, from),
            _ => self.takes(state, from, to) && self.takes(state, to, from),
        }
    }

    /// Whether entries go from a leader to a follower. The leader looks who acknowledges them. The
    /// follower does not look who leads: the voters of the leader did.
    fn may_lead(&self, state: &State, from: &Node, to: &Node) -> bool {
        match self.defect {
            Defect::IdsOnly | Defect::AnyAcknowledgement => true,
            Defect::OneEnd => self.takes(state, to, from),
            Defect::FollowerLooks => self.takes(state, from, to) && self.takes(state, to, from),
            _ => self.takes(state, from, to),
        }
    }

    /// One of the smallest quorums elects a node.
    fn elect(&self, state: &State, at: usize, then: &mut dyn FnMut(Action, State)) {
        let node = &state.nodes[at];
        let term = node.term + 1;
        let stands = node.log.len() > 0 && node.log.len() < self.entries;
        if !stands || term > self.terms {
            return;
        }
        let quorum = self.members(state, node).count() / 2 + 1;
        let helpers: Vec<usize> = (self.members(state, node))
            .filter(|by| *by != at && self.helps(state, (at, *by), term))
            .collect();
        let subsets = 0_u8..1 << helpers.len();
        for subset in subsets.filter(|subset| subset.count_ones() as usize + 1 == quorum) {
            let mut next = *state;
            let mut who = 0_u8;
            for (place, by) in helpers.iter().enumerate() {
                if subset & 1 << place != 0 {
                    next.nodes[*by] = follower(&state.nodes[*by], term);
                    who |= 1 << by;
                }
            }
            let leader = &mut next.nodes[at];
            *leader = follower(node, term);
            leader.leads = true;
            leader.log.push(term);
            leader.matched[at] = leader.log.len();
            next.leaders[usize::from(term)] |= 1 << at;
            then(Action::Elect { node: at, by: who }, next);
        }
    }

    fn helps(&self, state: &State, (at, by): (usize, usize), term: u8) -> bool {
        let (node, voter) = (&state.nodes[at], &state.nodes[by]);
        let waits = voter.log.len() == 0;
        let names_it =
            self.are_named && (!voter.is_other_disk || state.named(node) == Named::NewDisk);
        // One that has forgotten its vote gives it again in the same term.
        let is_behind = node.log.last() < voter.log.last() || term <= voter.term;
        self.may_elect(state, node, voter)
            && !is_behind
            && (!waits || names_it || self.defect != Defect::None)
    }

    fn members<'a>(&'a self, state: &'a State, by: &'a Node) -> impl Iterator<Item = usize> + 'a {
        (0..self.nodes).filter(move |id| state.is_member(by, *id))
    }

    /// All entries of a leader to one follower, with its acknowledgement.
    fn append(
        &self,
        state: &State,
        (at, other): (usize, usize),
        then: &mut dyn FnMut(Action, State),
    ) {
        let (from, to) = (&state.nodes[at], &state.nodes[other]);
        let is_rival = to.leads && to.term == from.term;
        if !from.leads || to.term > from.term || is_rival {
            return;
        }
        let mut next = *state;
        let len = from.log.len();
        next.nodes[other] = follower(to, from.term);
        next.nodes[other].log.take(&from.log, len);
        let leader = &mut next.nodes[at];
        leader.matched[other] = len;
        let committed = self.committed_by(&next, at);
        if committed > next.committed.len() {
            next.committed = next.nodes[at].log.head(committed);
        }
        then(
            Action::Append {
                from: at,
                to: other,
            },
            next,
        );
    }

    /// The last entry that a quorum of the leader's members has, if it is of its term.
    fn committed_by(&self, state: &State, at: usize) -> u8 {
        let leader = &state.nodes[at];
        let members = self.members(state, leader);
        let mut matched: Vec<u8> = members.map(|id| leader.matched[id]).collect();
        matched.sort_unstable_by(|a, b| b.cmp(a));
        let committed = matched[matched.len() / 2];
        match leader.log.term(committed) == leader.term {
            true => committed,
            false => 0,
        }
    }
}

fn follower(node: &Node, term: u8) -> Node {
    Node {
        term,
        log: node.log,
        is_other_disk: node.is_other_disk,
        ..Node::default()
    }
}

fn model(defect: Defect, are_named: bool) -> Incarnations {
    let wide = u8::from(super::is_long());
    Incarnations {
        defect,
        are_named,
        nodes: 3,
        terms: 4 + wide,
        entries: 5,
        restarts: 1 + wide,
    }
}

#[test]
fn a_node_that_lost_its_disk_does_not_make_a_quorum_forget() {
    holds("incarnation", &model(Defect::None, true));
}

#[test]
fn a_node_known_by_its_id_alone_makes_a_quorum_forget() {
    let ids_only = model(Defect::IdsOnly, true);
    refuted("incarnation, ids only", &ids_only, KEPT, 6);
    refuted("incarnation, ids only", &ids_only, ONE_LEADER, 3);
}

#[test]
fn both_ends_must_look() {
    refuted(
        "incarnation, one end",
        &model(Defect::OneEnd, true),
        KEPT,
        6,
    );
}

#[test]
fn who_waits_to_be_formed_into_a_group_may_have_lost_a_log() {
    holds("incarnation, waiting", &model(Defect::None, false));
    refuted(
        "incarnation, waiting helps",
        &model(Defect::WaitingHelps, false),
        KEPT,
        6,
    );
}

#[test]
fn a_leader_looks_who_acknowledges_its_entries() {
    let careless = model(Defect::AnyAcknowledgement, true);
    refuted("incarnation, any acknowledgement", &careless, KEPT, 8);
}

#[test]
fn a_follower_takes_entries_from_a_leader_whose_new_disk_it_does_not_know_yet() {
    let four = |defect| Incarnations {
        nodes: 4,
        terms: 3,
        entries: 4,
        restarts: 0,
        ..model(defect, true)
    };
    holds("incarnation, four nodes", &four(Defect::None));
    let strict = four(Defect::FollowerLooks);
    refuted("incarnation, a follower looks", &strict, REACHED, 12);
}

#[test]
fn a_new_disk_comes_in_only_after_the_old_one_is_out() {
    refuted("incarnation, swap", &model(Defect::Swap, true), KEPT, 12);
}
