//! An election at a refused connection (`broker/replica/src/raft/dead_leader.rs`): a node that believes the
//! leader dead stands at once, and the others vote although they heard from it a moment ago. Here
//! anybody may stand at any time, whether the leader lives or not: right or wrong, the guess must
//! cost nothing but an election. Votes are durable and are counted later than given; nodes restart.

use super::checker::{Model, holds, refuted};
use super::log::Log;

const NODES: usize = 3;
const ONE_LEADER: &str = "one leader a term";
const KEPT: &str = "a leader has all that was committed";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The answers to the question who has most of the log are taken for votes: nobody has to
    /// remember having given one.
    AnswersAreVotes,
    /// The survivor goes on in the term of the leader that it believes dead.
    SameTerm,
    /// The dead one is not asked and counts as one that agrees.
    DeadAgrees,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    Stand(usize),
    Vote { by: usize, to: usize },
    Win(usize),
    Write(usize),
    Append { from: usize, to: usize, len: u8 },
    Restart(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    term: u8,
    /// Whom it voted for in its term; itself: it stands or leads.
    vote: Option<u8>,
    log: Log,
    /// Votes of its own term, one bit a node.
    votes: u8,
    leads: bool,
    /// What its followers have of its log in its term.
    matched: [u8; NODES],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    nodes: [Node; NODES],
    committed: Log,
    /// Leaders of each term, one bit a node.
    leaders: [u8; 5],
    restarts: u8,
}

struct Elections {
    defect: Defect,
    terms: u8,
    entries: u8,
    restarts: u8,
}

impl Model for Elections {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[ONE_LEADER, KEPT];

    fn start(&self) -> State {
        // Node 0 leads in term 1; node 2 has not heard of it yet.
        let mut state = State::default();
        for node in &mut state.nodes[..2] {
            node.term = 1;
            node.vote = Some(0);
        }
        let leader = &mut state.nodes[0];
        leader.leads = true;
        leader.log.push(1);
        leader.votes = 0b011;
        leader.matched[0] = 1;
        state.leaders[1] = 1;
        state
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        for at in 0..NODES {
            self.one(state, at, then);
            for other in (0..NODES).filter(|other| *other != at) {
                self.two(state, (at, other), then);
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

impl Elections {
    fn one(&self, state: &State, at: usize, then: &mut dyn FnMut(Action, State)) {
        let node = &state.nodes[at];
        let term = node.term + u8::from(self.defect != Defect::SameTerm);
        if !node.leads && term <= self.terms {
            let mut next = *state;
            next.nodes[at] = Node {
                term,
                vote: Some(at as u8),
                votes: 1 << at,
                log: node.log,
                ..Node::default()
            };
            if self.defect == Defect::DeadAgrees {
                next.nodes[at].votes |= node.vote.map_or(0, |leader| 1 << leader);
            }
            then(Action::Stand(at), next);
        }
        let stands = node.vote == Some(at as u8) && !node.leads;
        if stands && node.votes.count_ones() > 1 && !node.log.is_full() {
            let mut next = *state;
            let leader = &mut next.nodes[at];
            leader.leads = true;
            leader.log.push(leader.term);
            leader.matched[at] = leader.log.len();
            next.leaders[usize::from(leader.term)] |= 1 << at;
            then(Action::Win(at), next);
        }
        if node.leads && node.log.len() < self.entries {
            let mut next = *state;
            next.nodes[at].log.push(node.term);
            next.nodes[at].matched[at] += 1;
            then(Action::Write(at), next);
        }
        if state.restarts < self.restarts {
            let mut next = *state;
            next.restarts += 1;
            next.nodes[at] = Node {
                term: node.term,
                vote: node.vote,
                log: node.log,
                ..Node::default()
            };
            then(Action::Restart(at), next);
        }
    }

    fn two(&self, state: &State, (at, other): (usize, usize), then: &mut dyn FnMut(Action, State)) {
        let (from, to) = (&state.nodes[at], &state.nodes[other]);
        let asks = from.vote == Some(at as u8) && !from.leads;
        let is_free = to.term < from.term || to.vote.is_none_or(|vote| usize::from(vote) == at);
        if asks && to.term <= from.term && is_free && from.log.last() >= to.log.last() {
            let mut next = *state;
            next.nodes[at].votes |= 1 << other;
            if self.defect != Defect::AnswersAreVotes {
                let voter = &mut next.nodes[other];
                *voter = Node {
                    term: from.term,
                    vote: Some(at as u8),
                    log: to.log,
                    ..Node::default()
                };
            }
            then(Action::Vote { by: other, to: at }, next);
        }
        if !from.leads || to.term > from.term || (to.leads && to.term == from.term) {
            return;
        }
        for len in from.log.common(&to.log)..=from.log.len() {
            let mut next = *state;
            let follower = &mut next.nodes[other];
            *follower = Node {
                term: from.term,
                vote: Some(at as u8),
                log: to.log,
                ..Node::default()
            };
            follower.log.take(&from.log, len);
            let leader = &mut next.nodes[at];
            leader.matched[other] = leader.matched[other].max(len);
            commit(&mut next, at);
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
    let leader = &state.nodes[at];
    let mut matched = leader.matched;
    matched.sort_unstable();
    let len = matched[NODES / 2];
    if leader.log.term(len) == leader.term && len > state.committed.len() {
        state.committed = leader.log.head(len);
    }
}

fn model(defect: Defect) -> Elections {
    let wide = u8::from(super::is_long());
    Elections {
        defect,
        terms: 3 + wide,
        entries: 3 + wide,
        restarts: 1 + wide,
    }
}

#[test]
fn an_election_at_any_time_costs_nothing_but_an_election() {
    holds("election", &model(Defect::None));
}

#[test]
fn answers_to_a_question_are_no_votes() {
    refuted(
        "election, answers are votes",
        &model(Defect::AnswersAreVotes),
        KEPT,
        4,
    );
}

#[test]
fn an_election_needs_a_term_of_its_own() {
    refuted(
        "election, same term",
        &model(Defect::SameTerm),
        ONE_LEADER,
        3,
    );
}

#[test]
fn a_dead_leader_does_not_agree() {
    refuted(
        "election, the dead one agrees",
        &model(Defect::DeadAgrees),
        KEPT,
        3,
    );
}
