//! The guard of a node that lost the end of its log (`broker/replica/src/raft/guard.rs`): when it votes again,
//! and for whom it votes all the same.
//!
//! Acknowledgements are on their way as long as they like, also when their sender has lost what it
//! acknowledged. A node loses any part of its log, acknowledged or committed, at any moment, but no
//! two nodes at a time. An election is one step: its winner may as well have done nothing between the
//! votes. The leader's answer is two steps, as in its Raft core, with anything in between.

use super::checker::{Model, holds, refuted};
use super::log::{Id, Log};

const NODES: usize = 3;
const KEPT: &str = "a leader has all that was committed";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// It votes as if nothing had happened.
    NoGuard,
    /// A node that has begun to follow another one answers as if it still led.
    FollowerAnswers,
    /// A leader of an earlier term is believed.
    EarlierLeader,
    /// Having what the leader knows as committed is enough.
    CommittedIsEnough,
    /// A candidate whose log ends in the term of the loss is believed to have everything.
    SameTermIsEnough,
    /// Any candidate gets its vote that has as much as is left here.
    VotesForAll,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    Elect { node: usize, by: usize },
    Write(usize),
    Append { from: usize, to: usize, len: u8 },
    Acknowledge { from: usize, to: usize },
    Lose { node: usize, len: u8 },
    Restart(usize),
    Ask { node: usize, leader: usize },
    Answer { node: usize },
    EndGuard(usize),
}

/// See `Lost` in the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Guard {
    term: u8,
    goal: Option<Id>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Node {
    term: u8,
    log: Log,
    leads: bool,
    /// It took entries of the leader of its term.
    follows: bool,
    /// As a leader: what the others have acknowledged.
    matched: [u8; NODES],
    /// What it knows as committed, and applied.
    committed: u8,
    guard: Option<Guard>,
    /// Whose entries it takes, one bit a node.
    admitted: u8,
    /// The leader that has begun to answer.
    asked: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct State {
    nodes: [Node; NODES],
    /// Term and length of the newest acknowledgement under way, from and to.
    acks: [[(u8, u8); NODES]; NODES],
    committed: Log,
    losses: u8,
    restarts: u8,
}

struct Guards {
    defect: Defect,
    terms: u8,
    entries: u8,
    losses: u8,
    restarts: u8,
}

impl Node {
    /// What is left after a restart with so much of the log.
    fn restarted(&self, len: u8) -> Self {
        let guard = self.guard.map(|_| Guard {
            term: self.term,
            goal: None,
        });
        Self {
            term: self.term,
            log: self.log.head(len),
            guard,
            admitted: if guard.is_some() { 0 } else { 0b111 },
            ..Self::default()
        }
    }

    /// What tells it from the others, whichever they are.
    fn trait_of_its_own(&self) -> (bool, u8, Log, u8, Option<Guard>) {
        (self.leads, self.term, self.log, self.committed, self.guard)
    }

    fn step_down(&mut self, term: u8) {
        if term > self.term {
            self.leads = false;
            self.follows = false;
            self.matched = [0; NODES];
        }
        self.term = term;
    }
}

impl State {
    /// Node `order[i]` of this state as node i.
    fn in_order(&self, order: [usize; NODES]) -> Self {
        let mut other = *self;
        for (at, from) in order.into_iter().enumerate() {
            let node = &self.nodes[from];
            let new = &mut other.nodes[at];
            *new = *node;
            new.admitted = 0;
            for (to, from_peer) in order.into_iter().enumerate() {
                new.matched[to] = node.matched[from_peer];
                new.admitted |= (node.admitted >> from_peer & 1) << to;
                other.acks[at][to] = self.acks[from][from_peer];
                if node.asked == Some(from_peer as u8) {
                    new.asked = Some(to as u8);
                }
            }
        }
        other
    }

    /// Acknowledgements that change nothing any more need not arrive.
    fn forget_late_acks(&mut self) {
        for (from, acks) in self.acks.iter_mut().enumerate() {
            for (ack, to) in acks.iter_mut().zip(&self.nodes) {
                if !to.leads || to.term != ack.0 || to.matched[from] >= ack.1 {
                    *ack = (0, 0);
                }
            }
        }
    }
}

impl Model for Guards {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[KEPT];

    fn start(&self) -> State {
        let mut state = State::default();
        for node in &mut state.nodes {
            node.term = 1;
            node.admitted = 0b111;
        }
        let leader = &mut state.nodes[0];
        leader.leads = true;
        leader.log.push(1);
        leader.matched[0] = 1;
        state
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        let then = &mut |action, mut next: State| {
            next.forget_late_acks();
            then(action, next);
        };
        for at in 0..NODES {
            self.one(state, at, then);
            self.guard(state, at, then);
            for other in (0..NODES).filter(|other| *other != at) {
                self.elect(state, (at, other), then);
                self.append(state, (at, other), then);
            }
        }
    }

    fn representative(&self, state: &State) -> State {
        let mut order = [0, 1, 2];
        order.sort_by_key(|at| state.nodes[*at].trait_of_its_own());
        state.in_order(order)
    }

    fn keeps(&self, state: &State, _promise: &str) -> bool {
        let (term, _) = state.committed.last();
        let mut later = state
            .nodes
            .iter()
            .filter(|node| node.leads && node.term >= term);
        later.all(|leader| leader.log.has(&state.committed))
    }
}

impl Guards {
    fn one(&self, state: &State, at: usize, then: &mut dyn FnMut(Action, State)) {
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
            next.nodes[at] = node.restarted(node.log.len());
            then(Action::Restart(at), next);
        }
        let others_whole = state.nodes.iter().all(|node| node.guard.is_none());
        if state.losses < self.losses && others_whole {
            for len in 0..node.log.len() {
                let mut next = *state;
                next.losses += 1;
                next.nodes[at] = node.restarted(len);
                next.nodes[at].admitted = 0;
                next.nodes[at].guard = Some(Guard {
                    term: node.term,
                    goal: None,
                });
                then(Action::Lose { node: at, len }, next);
            }
        }
    }

    fn guard(&self, state: &State, at: usize, then: &mut dyn FnMut(Action, State)) {
        let node = &state.nodes[at];
        let Some(guard) = node.guard else { return };
        if let Some(leader) = node.asked {
            let mut next = *state;
            next.nodes[at].asked = None;
            if let Some(last) = self.answer(&state.nodes[usize::from(leader)], node) {
                let goal = guard.goal.max(Some(last));
                next.nodes[at].guard = Some(Guard { goal, ..guard });
                next.nodes[at].admitted |= 1 << leader;
            }
            then(Action::Answer { node: at }, next);
        } else {
            for leader in (0..NODES).filter(|other| *other != at && state.nodes[*other].leads) {
                let mut next = *state;
                next.nodes[at].asked = Some(leader as u8);
                then(Action::Ask { node: at, leader }, next);
            }
        }
        let applied = (node.log.term(node.committed), node.committed);
        if guard.goal.is_some_and(|goal| applied >= goal) {
            let mut next = *state;
            next.nodes[at].guard = None;
            next.nodes[at].admitted = 0b111;
            next.nodes[at].asked = None;
            then(Action::EndGuard(at), next);
        }
    }

    /// The goal that a node takes from the answer of one that led a moment ago.
    fn answer(&self, leader: &Node, node: &Node) -> Option<Id> {
        let answers = leader.leads || (self.defect == Defect::FollowerAnswers && leader.follows);
        let is_before = leader.term < node.term && self.defect != Defect::EarlierLeader;
        let has_own = leader.log.last().0 == leader.term;
        if !answers || is_before || !has_own {
            return None;
        }
        if self.defect == Defect::CommittedIsEnough {
            return Some((leader.log.term(leader.committed), leader.committed));
        }
        Some(leader.log.last())
    }

    fn votes(&self, node: &Node, last: Id) -> bool {
        if node.log.last() > last {
            return false;
        }
        let Some(guard) = node.guard else { return true };
        match self.defect {
            Defect::NoGuard | Defect::VotesForAll => true,
            Defect::SameTermIsEnough if last.0 == guard.term => true,
            _ => last.0 > guard.term || guard.goal.is_some_and(|goal| last >= goal),
        }
    }

    fn elect(&self, state: &State, (at, by): (usize, usize), then: &mut dyn FnMut(Action, State)) {
        let (node, voter) = (&state.nodes[at], &state.nodes[by]);
        let term = node.term.max(voter.term) + 1;
        let stands = node.guard.is_none() || self.defect == Defect::NoGuard;
        if term > self.terms
            || node.log.len() >= self.entries
            || !stands
            || !self.votes(voter, node.log.last())
        {
            return;
        }
        let mut next = *state;
        next.nodes[by].step_down(term);
        let leader = &mut next.nodes[at];
        leader.step_down(term);
        leader.leads = true;
        leader.log.push(term);
        leader.matched[at] = leader.log.len();
        then(Action::Elect { node: at, by }, next);
    }

    fn append(
        &self,
        state: &State,
        (at, other): (usize, usize),
        then: &mut dyn FnMut(Action, State),
    ) {
        let (from, to) = (&state.nodes[at], &state.nodes[other]);
        let (term, len) = state.acks[other][at];
        if len > 0 {
            let mut next = *state;
            next.acks[other][at] = (0, 0);
            if from.leads && from.term == term {
                let matched = &mut next.nodes[at].matched[other];
                *matched = len.max(*matched);
                commit(&mut next, at);
            }
            let action = Action::Acknowledge {
                from: other,
                to: at,
            };
            then(action, next);
        }
        if !from.leads || to.term > from.term || to.admitted & 1 << at == 0 {
            return;
        }
        let common = from.log.common(&to.log);
        for len in common..=from.log.len() {
            let mut next = *state;
            // The leader begins anew with a node that has less than it counts.
            if common < from.matched[other] {
                next.nodes[at].matched[other] = 0;
            }
            let follower = &mut next.nodes[other];
            follower.step_down(from.term);
            follower.follows = true;
            follower.log.take(&from.log, len);
            follower.committed = follower.committed.max(from.committed.min(len));
            let newest = next.acks[other][at].max((from.term, len));
            next.acks[other][at] = newest;
            let action = Action::Append {
                from: at,
                to: other,
                len,
            };
            then(action, next);
        }
    }
}

/// Commits what a quorum has of the leader's own term.
fn commit(state: &mut State, at: usize) {
    let leader = &mut state.nodes[at];
    let mut matched = leader.matched;
    matched.sort_unstable();
    let len = matched[NODES / 2];
    if leader.log.term(len) == leader.term && len > leader.committed {
        leader.committed = len;
        if len > state.committed.len() {
            state.committed = leader.log.head(len);
        }
    }
}

fn model(defect: Defect) -> Guards {
    let wide = u8::from(super::is_long());
    Guards {
        defect,
        terms: 3 + wide,
        entries: 3,
        losses: 1 + wide,
        restarts: wide,
    }
}

#[test]
fn a_guarded_node_never_helps_to_lose_what_it_acknowledged() {
    holds("guard", &model(Defect::None));
}

#[test]
fn without_a_guard_committed_entries_are_lost() {
    refuted("guard, none", &model(Defect::NoGuard), KEPT, 6);
}

#[test]
fn a_follower_must_not_tell_the_goal() {
    refuted(
        "guard, a follower answers",
        &model(Defect::FollowerAnswers),
        KEPT,
        20,
    );
}

#[test]
fn a_leader_of_an_earlier_term_must_not_tell_the_goal() {
    refuted(
        "guard, an earlier leader answers",
        &model(Defect::EarlierLeader),
        KEPT,
        20,
    );
}

#[test]
fn what_is_committed_is_not_far_enough() {
    refuted(
        "guard, committed is enough",
        &model(Defect::CommittedIsEnough),
        KEPT,
        20,
    );
}

#[test]
fn a_candidate_of_the_term_of_the_loss_may_lack_it() {
    refuted(
        "guard, same term is enough",
        &model(Defect::SameTermIsEnough),
        KEPT,
        20,
    );
}

#[test]
fn a_guarded_node_does_not_vote_for_all() {
    refuted("guard, votes for all", &model(Defect::VotesForAll), KEPT, 6);
}
