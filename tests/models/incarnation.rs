//! Incarnations (`broker/src/raft/members.rs`, raft:I1, and `server.rs`, raft:I2): a node that lost its
//! disk comes back under its old id and knows neither its votes nor its log. It must neither vote nor
//! receive the log, or a quorum forgets.
//!
//! The members are those of the first entry, which every log begins with: a node with an empty log
//! knows none. At most one disk is lost of those that the membership names; a group of three stands no
//! more. Elections and replication are one step with their answers.

use super::checker::{Model, holds, refuted};
use super::log::Log;

const NODES: usize = 3;
const KEPT: &str = "a leader has all that was committed";
const ONE_LEADER: &str = "one leader a term";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A node is known by its id alone.
    IdsOnly,
    /// Only the node that is connected to looks.
    OneEnd,
    /// Who waits to be formed into a group helps everybody.
    WaitingHelps,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    Elect { node: usize, by: usize },
    Write(usize),
    Append { from: usize, to: usize },
    Restart(usize),
    LoseDisk(usize),
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
}

struct Incarnations {
    defect: Defect,
    /// Whether the membership names the disks. If it does not, a node that comes back empty can be
    /// told from others only as long as it has nothing: what follows is for the guard.
    are_named: bool,
    terms: u8,
    entries: u8,
    restarts: u8,
}

impl Model for Incarnations {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[ONE_LEADER, KEPT];

    fn start(&self) -> State {
        let mut state = State::default();
        for node in &mut state.nodes {
            node.term = 1;
            node.log.push(1);
        }
        state.nodes[0].leads = true;
        state.nodes[0].matched = [1, 0, 0];
        state.leaders[1] = 1;
        state.committed.push(1);
        state
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        for at in 0..NODES {
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
                next.nodes[at] = Node {
                    is_other_disk: true,
                    ..Node::default()
                };
                then(Action::LoseDisk(at), next);
            }
            for other in (0..NODES).filter(|other| *other != at) {
                let to = &state.nodes[other];
                if self.talk(node, to) {
                    self.elect(state, (at, other), then);
                    if self.are_named || !to.is_other_disk {
                        append(state, (at, other), then);
                    }
                }
            }
        }
    }

    fn keeps(&self, state: &State, promise: &str) -> bool {
        if promise == ONE_LEADER {
            return state.leaders.iter().all(|who| who.count_ones() <= 1);
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
    /// Whether a connection from one node to another comes about.
    fn talk(&self, from: &Node, to: &Node) -> bool {
        let takes = |own: &Node, peer: &Node| {
            let knows_members = own.log.len() > 0;
            !knows_members || !self.are_named || !peer.is_other_disk
        };
        match self.defect {
            Defect::IdsOnly => true,
            Defect::OneEnd => takes(to, from),
            Defect::None | Defect::WaitingHelps => takes(from, to) && takes(to, from),
        }
    }

    fn elect(&self, state: &State, (at, by): (usize, usize), then: &mut dyn FnMut(Action, State)) {
        let (node, voter) = (&state.nodes[at], &state.nodes[by]);
        let stands = node.log.len() > 0 && node.log.len() < self.entries;
        let waits = voter.log.len() == 0;
        let names_it = self.are_named && !voter.is_other_disk;
        let helps = !waits || names_it || self.defect != Defect::None;
        // One that has forgotten its vote gives it again in the same term.
        let term = node.term + 1;
        let is_behind = node.log.last() < voter.log.last() || term <= voter.term;
        if !stands || !helps || is_behind || term > self.terms {
            return;
        }
        let mut next = *state;
        next.nodes[by] = follower(voter, term);
        let leader = &mut next.nodes[at];
        *leader = follower(node, term);
        leader.leads = true;
        leader.log.push(term);
        leader.matched[at] = leader.log.len();
        next.leaders[usize::from(term)] |= 1 << at;
        then(Action::Elect { node: at, by }, next);
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

/// All entries of a leader to one follower, with its acknowledgement.
fn append(state: &State, (at, other): (usize, usize), then: &mut dyn FnMut(Action, State)) {
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
    let mut matched = leader.matched;
    matched.sort_unstable();
    let committed = matched[NODES / 2];
    if leader.log.term(committed) == leader.term && committed > next.committed.len() {
        next.committed = leader.log.head(committed);
    }
    then(
        Action::Append {
            from: at,
            to: other,
        },
        next,
    );
}

fn model(defect: Defect, are_named: bool) -> Incarnations {
    let wide = u8::from(super::is_long());
    Incarnations {
        defect,
        are_named,
        terms: 4 + wide,
        entries: 4,
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
