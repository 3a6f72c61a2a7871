//! What all processes of a simulation did to the replicated log, from its beginning to its end: every
//! entry that any of them applied, every entry that any of them may have acknowledged, every vote
//! that reached a disk. What contradicts something before is a problem at once, also when nothing of
//! it is left in the end.

use std::collections::BTreeMap;

use raftmq::host::AppliedEntry;
use raftmq_store::{EntryKind, LogId};

use super::net::HostId;
use super::vote_file::Vote;

/// More of one kind say nothing new.
const PROBLEMS_MAX: usize = 20;

/// See the file comment. Each rule has an id.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Simulated time. Unit: ms.
    pub now_ms: u64,
    lines: BTreeMap<u64, Line>,
    /// Of each node, the term of what it may have acknowledged last at each index.
    acknowledged: BTreeMap<HostId, BTreeMap<u64, u64>>,
    lacks: Vec<Lack>,
    /// The newest vote on the disk of each node.
    votes: BTreeMap<HostId, Vote>,
    /// Leader of each term, and the node on whose disk that was found first.
    leaders: BTreeMap<u64, (u64, HostId)>,
    /// Index of the newest membership that was applied, and whether it is a joint one.
    membership: Option<(u64, bool)>,
    /// Ends of guards that were looked at.
    pub guards_ended: u64,
    problems: Vec<String>,
}

/// What stands at an index, by the first process that applied it.
#[derive(Debug)]
struct Line {
    term: u64,
    crc: u32,
    node: HostId,
    at_ms: u64,
}

/// An entry that a node may have acknowledged and did not have when it began to vote again.
#[derive(Debug)]
struct Lack {
    node: HostId,
    at_ms: u64,
    index: u64,
    term: u64,
}

impl Ledger {
    fn problem(&mut self, problem: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    /// R6: at one index all processes apply the same entry, at all times.
    pub fn applied(&mut self, node: HostId, entry: &AppliedEntry<'_>) {
        let mut crc = crc32c::crc32c(entry.payload);
        crc = crc32c::crc32c_append(crc, &[entry.kind as u8]);
        crc = crc32c::crc32c_append(crc, &entry.physical_offset.to_le_bytes());
        if entry.kind == EntryKind::Membership {
            self.note_membership(entry.index, entry.payload);
        }
        let Some(line) = self.lines.get(&entry.index) else {
            let line = Line {
                term: entry.term,
                crc,
                node,
                at_ms: self.now_ms,
            };
            self.lines.insert(entry.index, line);
            return;
        };
        if (line.term, line.crc) != (entry.term, crc) {
            let problem = format!(
                "R6: n{node} applies another entry at index {} at {} ms: term {} crc {crc:08x}; n{} \
                 applied term {} crc {:08x} at {} ms",
                entry.index, self.now_ms, entry.term, line.node, line.term, line.crc, line.at_ms,
            );
            self.problem(problem);
        }
    }

    fn note_membership(&mut self, index: u64, json: &[u8]) {
        if self.membership.is_some_and(|(newest, _)| newest >= index) {
            return;
        }
        // Two sets of voters while a change is under way, as `[[1,2],[1,3]]`.
        let text = String::from_utf8_lossy(json);
        self.membership = Some((index, text.contains("],[")));
    }

    /// Whether the newest membership that was applied is that of a change under way.
    pub fn is_joint(&self) -> bool {
        self.membership.is_some_and(|(_, joint)| joint)
    }

    /// Entries that a node may acknowledge from now on.
    pub fn acknowledgeable(&mut self, node: HostId, first: LogId, last: LogId) {
        let own = self.acknowledged.entry(node).or_default();
        for index in first.index..=last.index {
            own.insert(index, last.term);
        }
    }

    /// R7: a node that lost the end of its log votes again only when it has every entry that was
    /// committed on the strength of its acknowledgement. `terms`: its log now, from behind `purged`.
    pub fn guard_ended(&mut self, node: HostId, purged: Option<u64>, terms: &BTreeMap<u64, u64>) {
        self.guards_ended += 1;
        let Some(own) = self.acknowledged.get(&node) else {
            return;
        };
        let at_ms = self.now_ms;
        let missing = own
            .iter()
            .filter(|(index, term)| purged < Some(**index) && terms.get(index) != Some(term));
        let missing = missing.map(|(index, term)| Lack {
            node,
            at_ms,
            index: *index,
            term: *term,
        });
        self.lacks.extend(missing);
    }

    /// A vote is on the disk of a node. R1: in one term one node leads. R8: in one term a node votes
    /// for one, unless a quorum has voted for another one, and its term does not fall.
    pub fn voted(&mut self, node: HostId, vote: Vote) {
        let now_ms = self.now_ms;
        let follows = |before: Vote| {
            let same = before.node == vote.node;
            before.term < vote.term
                || before.term == vote.term && (same || vote.committed && !before.committed)
        };
        if let Some(before) = self.votes.insert(node, vote)
            && !follows(before)
        {
            self.problem(format!(
                "R8: n{node} votes {vote:?} at {now_ms} ms after {before:?}"
            ));
        }
        if !vote.committed {
            return;
        }
        let (leader, found_at) = *(self.leaders.entry(vote.term)).or_insert((vote.node, node));
        if leader != vote.node {
            self.problem(format!(
                "R1: {leader} (n{found_at}) and {} (n{node}) lead in term {} at {now_ms} ms",
                vote.node, vote.term
            ));
        }
    }

    /// The disk of a node is gone, or an older one is back: what it said before binds it no more.
    pub fn forget(&mut self, node: HostId) {
        self.votes.remove(&node);
        self.acknowledged.remove(&node);
    }

    /// Everything that does not hold. What a node lacked at the end of its guard may have been
    /// committed later.
    pub fn take_problems(&mut self) -> Vec<String> {
        let lines = &self.lines;
        let committed =
            |lack: &&Lack| lines.get(&lack.index).map(|line| line.term) == Some(lack.term);
        let mut problems = std::mem::take(&mut self.problems);
        let lacks = self.lacks.iter().filter(committed).take(PROBLEMS_MAX);
        problems.extend(lacks.map(|lack| {
            let Lack {
                node,
                at_ms,
                index,
                term,
            } = lack;
            format!(
                "R7: n{node} votes again at {at_ms} ms without index {index} of term {term}, which \
                 it acknowledged and which is committed"
            )
        }));
        self.lacks.clear();
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64, payload: &[u8]) -> AppliedEntry<'_> {
        AppliedEntry {
            index,
            term,
            kind: EntryKind::Normal,
            payload,
            physical_offset: 100 * index,
        }
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId {
            term,
            node: 0,
            index,
        }
    }

    fn vote(term: u64, node: u64, committed: bool) -> Vote {
        Vote {
            term,
            node,
            committed,
        }
    }

    #[test]
    fn another_entry_at_an_index_is_found_with_its_node_and_time() {
        let mut ledger = Ledger::default();
        ledger.applied(1, &entry(7, 2, b"a"));
        ledger.applied(2, &entry(7, 2, b"a"));
        assert_eq!(ledger.take_problems(), Vec::<String>::new());
        ledger.now_ms = 50;
        for other in [
            entry(7, 2, b"b"),
            entry(7, 3, b"a"),
            AppliedEntry {
                kind: EntryKind::Membership,
                ..entry(7, 2, b"a")
            },
            AppliedEntry {
                physical_offset: 1,
                ..entry(7, 2, b"a")
            },
        ] {
            ledger.applied(3, &other);
            let problems = ledger.take_problems();
            assert_eq!(problems.len(), 1, "{other:?}");
            let begin = "R6: n3 applies another entry at index 7 at 50 ms";
            assert!(problems[0].starts_with(begin), "{problems:?}");
        }
    }

    #[test]
    fn two_leaders_of_a_term_are_found_and_two_candidates_are_none() {
        let mut ledger = Ledger::default();
        for (node, vote) in [
            (1, vote(5, 1, false)),
            (2, vote(5, 2, false)),
            (1, vote(5, 1, true)),
            (3, vote(5, 1, true)),
            (2, vote(5, 1, true)),
            (2, vote(6, 2, true)),
        ] {
            ledger.voted(node, vote);
        }
        assert_eq!(ledger.take_problems(), Vec::<String>::new());
        ledger.voted(4, vote(5, 2, true));
        let problems = ledger.take_problems();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("R1: 1 (n1) and 2 (n4) lead in term 5"));
    }

    #[test]
    fn a_second_vote_in_a_term_and_a_term_that_falls_are_found_unless_the_disk_is_another() {
        for second in [vote(5, 2, false), vote(4, 1, true)] {
            let mut ledger = Ledger::default();
            ledger.voted(1, vote(5, 1, false));
            ledger.voted(1, second);
            assert_eq!(ledger.take_problems().len(), 1, "{second:?}");
            ledger.voted(2, vote(5, 1, false));
            ledger.forget(2);
            ledger.voted(2, second);
            assert_eq!(ledger.take_problems(), Vec::<String>::new());
        }
    }

    #[test]
    fn a_node_that_votes_again_without_what_it_acknowledged_is_found_once_that_is_committed() {
        let has = |upto| (0..=upto).map(|index| (index, 2)).collect();
        let mut ledger = Ledger::default();
        ledger.acknowledgeable(1, id(2, 0), id(2, 9));
        for index in 0..6 {
            ledger.applied(2, &entry(index, 2, b""));
        }
        ledger.guard_ended(1, None, &has(5));
        assert_eq!(
            ledger.take_problems(),
            Vec::<String>::new(),
            "6 is not committed"
        );
        ledger.guard_ended(1, None, &has(5));
        ledger.applied(2, &entry(6, 2, b""));
        assert_eq!(ledger.take_problems().len(), 1, "6 is committed later");
        // What a snapshot covers is there.
        ledger.guard_ended(1, Some(6), &BTreeMap::new());
        assert_eq!(ledger.take_problems(), Vec::<String>::new());
        // An entry of another leader is not what was acknowledged.
        ledger.guard_ended(1, None, &BTreeMap::from([(6, 1)]));
        assert_eq!(ledger.take_problems().len(), 7);
    }

    #[test]
    fn a_membership_of_two_sets_is_a_change_under_way() {
        let mut ledger = Ledger::default();
        for (index, json, joint) in [
            (1, r#"{"configs":[[1,2],[2,3]],"nodes":{}}"#, true),
            (3, r#"{"configs":[[1,2]],"nodes":{}}"#, false),
            (2, r#"{"configs":[[1,2],[2,3]],"nodes":{}}"#, false),
        ] {
            let membership = AppliedEntry {
                kind: EntryKind::Membership,
                ..entry(index, 1, json.as_bytes())
            };
            ledger.applied(1, &membership);
            assert_eq!(ledger.is_joint(), joint, "{index}");
        }
    }
}
