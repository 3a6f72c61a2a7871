//! Confirmation of the leadership (`broker/replica/src/raft/confirm.rs`) and what `Role::serving` adds to it:
//! an answer from the state of a node contains everything that anybody was shown before the question.
//!
//! Node 0 is asked. What it knows of its own role may be as old as you like. A client is shown an
//! entry as soon as any node has applied it: the leader acknowledges it then, and followers serve
//! pulls. A leader may apply what is committed later than its followers do. Replication is one step
//! with its acknowledgement, so are the votes of an election; a hand-over that fails leaves a leader
//! that neither writes nor sends heartbeats, until somebody else stands.

use super::checker::{Model, holds, refuted};
use super::log::Log;

const NODES: usize = 3;
const FRESH: &str = "an answer contains all that was shown before the question";
const FREE: &str = "who has given its term away puts off no election";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// `serving` of one term counts with the confirmation of another.
    AnyTerm,
    /// The leader of a term that serves is not asked for a confirmation.
    NotConfirmed,
    /// A leader answers before it has applied an entry of its own term.
    BeforeServing,
    /// A leader answers before it has applied what was committed at the question.
    BeforeApplied,
    /// A leader that has begun to hand over confirms as before.
    ConfirmsAfterTransfer,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    Elect { node: usize, by: usize },
    Write(usize),
    Append { from: usize, to: usize },
    Apply(usize),
    GiveAway,
    SeeRole,
    Question,
    Follows(usize),
    Confirmed,
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Node {
    term: u8,
    leads: bool,
    log: Log,
    committed: u8,
    applied: u8,
    matched: [u8; NODES],
    /// It has begun to hand over in this term.
    gave_away: bool,
}

/// A question to node 0 on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
enum Read {
    #[default]
    None,
    /// What was shown before, what the leader had committed, the term that the round confirms, who
    /// follows, one bit a node, and whether the term was given away before.
    Round {
        shown: Log,
        committed: u8,
        term: u8,
        following: u8,
        is_late: bool,
    },
    Confirmed {
        shown: Log,
        committed: u8,
        term: u8,
    },
    Answered {
        is_fresh: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    nodes: [Node; NODES],
    /// The longest log that any node has applied.
    shown: Log,
    /// The term in which node 0 last saw itself serving.
    serving: Option<u8>,
    read: Read,
    put_off: bool,
}

struct Confirmations {
    defect: Defect,
    terms: u8,
    entries: u8,
}

impl Model for Confirmations {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[FRESH, FREE];

    fn start(&self) -> State {
        let mut state = State::default();
        for node in &mut state.nodes {
            node.term = 1;
        }
        let leader = &mut state.nodes[0];
        leader.leads = true;
        leader.log.push(1);
        leader.matched[0] = 1;
        state
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        for at in 0..NODES {
            let node = &state.nodes[at];
            if node.leads && !node.gave_away && node.log.len() < self.entries {
                let mut next = *state;
                next.nodes[at].log.push(node.term);
                next.nodes[at].matched[at] += 1;
                then(Action::Write(at), next);
            }
            if node.applied < node.committed {
                let mut next = *state;
                next.apply(at);
                then(Action::Apply(at), next);
            }
            for other in (0..NODES).filter(|other| *other != at) {
                self.elect(state, (at, other), then);
                append(state, (at, other), then);
            }
        }
        let node = &state.nodes[0];
        if node.leads && !node.gave_away {
            let mut next = *state;
            next.nodes[0].gave_away = true;
            then(Action::GiveAway, next);
        }
        let mut next = *state;
        next.serving = serving(node)
            .or_else(|| (self.defect == Defect::BeforeServing && node.leads).then_some(node.term));
        then(Action::SeeRole, next);
        self.read(state, then);
    }

    fn keeps(&self, state: &State, promise: &str) -> bool {
        if promise == FREE {
            return !state.put_off;
        }
        state.read != (Read::Answered { is_fresh: false })
    }
}

/// The term in which a node serves: it leads and has applied an entry of its own.
fn serving(node: &Node) -> Option<u8> {
    let has_own = node.log.term(node.applied) == node.term;
    (node.leads && has_own && !node.gave_away).then_some(node.term)
}

impl State {
    /// A node applies all that it knows to be committed.
    fn apply(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.applied = node.committed;
        if node.applied > self.shown.len() {
            self.shown = node.log.head(node.applied);
        }
    }
}

impl Confirmations {
    fn elect(&self, state: &State, (at, by): (usize, usize), then: &mut dyn FnMut(Action, State)) {
        let (node, voter) = (&state.nodes[at], &state.nodes[by]);
        let term = node.term.max(voter.term) + 1;
        let is_behind = node.log.last() < voter.log.last();
        if term > self.terms || node.log.len() >= self.entries || is_behind {
            return;
        }
        let mut next = *state;
        next.nodes[by] = follower(voter, term);
        let leader = &mut next.nodes[at];
        *leader = follower(node, term);
        leader.leads = true;
        leader.log.push(term);
        leader.matched[at] = leader.log.len();
        then(Action::Elect { node: at, by }, next);
    }

    fn read(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        let node = &state.nodes[0];
        let mut next = *state;
        match state.read {
            Read::None => {
                let asks =
                    node.leads && (!node.gave_away || self.defect == Defect::ConfirmsAfterTransfer);
                if asks && state.serving.is_some() {
                    next.read = Read::Round {
                        shown: state.shown,
                        committed: node.committed,
                        term: node.term,
                        following: 1,
                        is_late: node.gave_away,
                    };
                    then(Action::Question, next);
                }
            }
            Read::Round {
                shown,
                committed,
                term,
                following,
                is_late,
            } => {
                for (other, peer) in state.nodes.iter().enumerate().skip(1) {
                    if peer.term <= term {
                        let mut next = *state;
                        if peer.term < term {
                            next.nodes[other] = follower(peer, term);
                        }
                        next.read = Read::Round {
                            shown,
                            committed,
                            term,
                            following: following | 1 << other,
                            is_late,
                        };
                        next.put_off |= is_late;
                        then(Action::Follows(other), next);
                    }
                }
                let own = node.leads && node.term == term;
                let is_quorum = following.count_ones() > 1 || self.defect == Defect::NotConfirmed;
                if is_quorum && own {
                    next.read = Read::Confirmed {
                        shown,
                        committed,
                        term,
                    };
                    then(Action::Confirmed, next);
                }
            }
            Read::Confirmed {
                shown,
                committed,
                term,
            } => {
                let is_same = state.serving == Some(term) || self.defect == Defect::AnyTerm;
                let has_it = node.applied >= committed || self.defect == Defect::BeforeApplied;
                if is_same && has_it {
                    let state_of_node = node.log.head(node.applied);
                    next.read = Read::Answered {
                        is_fresh: state_of_node.has(&shown),
                    };
                    then(Action::Answer, next);
                }
            }
            Read::Answered { .. } => {}
        }
    }
}

/// A node that has heard of a later term.
fn follower(node: &Node, term: u8) -> Node {
    Node {
        term,
        log: node.log,
        committed: node.committed,
        applied: node.applied,
        ..Node::default()
    }
}

/// All entries of a leader to one follower, with its acknowledgement.
fn append(state: &State, (at, other): (usize, usize), then: &mut dyn FnMut(Action, State)) {
    let (from, to) = (&state.nodes[at], &state.nodes[other]);
    if !from.leads || from.gave_away || to.term > from.term {
        return;
    }
    let mut next = *state;
    let follower = &mut next.nodes[other];
    if to.term < from.term {
        *follower = self::follower(to, from.term);
    }
    let len = from.log.len();
    follower.log.take(&from.log, len);
    follower.committed = follower.committed.max(from.committed);
    next.apply(other);
    let leader = &mut next.nodes[at];
    leader.matched[other] = len;
    let mut matched = leader.matched;
    matched.sort_unstable();
    let committed = matched[NODES / 2];
    if leader.log.term(committed) == leader.term {
        leader.committed = leader.committed.max(committed);
    }
    then(
        Action::Append {
            from: at,
            to: other,
        },
        next,
    );
}

fn model(defect: Defect) -> Confirmations {
    let wide = u8::from(super::is_long());
    Confirmations {
        defect,
        terms: 3 + wide,
        entries: 3 + wide,
    }
}

#[test]
fn a_confirmed_answer_has_all_that_was_shown_before_the_question() {
    holds("confirmation", &model(Defect::None));
}

#[test]
fn a_confirmation_says_nothing_about_another_term() {
    refuted("confirmation, any term", &model(Defect::AnyTerm), FRESH, 12);
}

#[test]
fn a_leader_that_asks_nobody_may_be_replaced() {
    refuted(
        "confirmation, none",
        &model(Defect::NotConfirmed),
        FRESH,
        12,
    );
}

#[test]
fn a_leader_must_have_applied_an_entry_of_its_own() {
    refuted(
        "confirmation, before serving",
        &model(Defect::BeforeServing),
        FRESH,
        12,
    );
}

#[test]
fn a_leader_must_have_applied_what_its_followers_may_have() {
    refuted(
        "confirmation, before applied",
        &model(Defect::BeforeApplied),
        FRESH,
        12,
    );
}

#[test]
fn a_leader_that_hands_over_must_not_confirm() {
    let careless = model(Defect::ConfirmsAfterTransfer);
    refuted("confirmation, after a transfer", &careless, FREE, 6);
}
