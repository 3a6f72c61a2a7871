//! A follower that comes back with less than its leader counts as acknowledged
//! (`VoteGuard::admit` in `broker/replica/src/raft/guard.rs`), and openraft's progress of that follower
//! (`progress/entry/update.rs` of 0.10.0-alpha.37): it catches up in the same term, and takes no entry
//! while it lacks what it acknowledged and may vote.
//!
//! Acknowledgements of a process that died have arrived before its successor is answered: the answer
//! comes over a connection that is made later. See the variant for what happens otherwise.

use super::checker::{Model, holds, keeps, refuted};

const STUCK: &str = "the leader can go back to where the follower is";
const VOTES: &str = "a node that takes entries and votes lacks nothing that it acknowledged";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// A follower takes entries from the start.
    NeverAsks,
    /// The leader goes back whenever a follower says that entries are missing.
    AlwaysAllowed,
    /// The leader answers before it has seen the last acknowledgement of the process that died.
    LateAcknowledgement,
}

#[derive(Debug, Clone, Copy)]
#[allow(dead_code, reason = "read by Debug, in a counterexample")]
enum Action {
    Write,
    Heartbeat,
    Append { len: u8 },
    Acknowledge,
    Die { len: u8 },
    Ask,
    EndGuard,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct State {
    /// Entries of the leader and of the follower.
    leader: u8,
    follower: u8,
    /// What the follower has ever acknowledged in this term.
    acknowledged: u8,
    /// The leader's progress: what matches, what may match at most, and whether it may go back.
    matched: u8,
    may_match: u8,
    may_revert: bool,
    /// The newest acknowledgement under way, and whether its sender has died.
    ack: Option<u8>,
    ack_of_dead: bool,
    is_admitted: bool,
    fits: bool,
    /// What the follower must have before it votes again.
    goal: Option<u8>,
    deaths: u8,
    voted_without: bool,
}

struct CatchUp {
    defect: Defect,
    entries: u8,
    deaths: u8,
}

impl Model for CatchUp {
    type State = State;
    type Action = Action;

    const PROMISES: &'static [&'static str] = &[STUCK, VOTES];

    fn start(&self) -> State {
        State {
            leader: 1,
            may_match: 1,
            is_admitted: true,
            ..State::default()
        }
    }

    fn next(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        if state.leader < self.entries {
            let mut next = *state;
            next.leader += 1;
            then(Action::Write, next);
        }
        self.send(state, then);
        if let Some(len) = state.ack {
            let mut next = *state;
            next.ack = None;
            next.matched = state.matched.max(len);
            next.may_match = state.may_match.max(next.matched);
            then(Action::Acknowledge, next);
        }
        if state.deaths < self.deaths {
            for len in 0..=state.follower {
                let mut next = *state;
                next.deaths += 1;
                next.follower = len;
                next.ack_of_dead = state.ack.is_some();
                next.is_admitted = self.defect == Defect::NeverAsks;
                next.fits = false;
                then(Action::Die { len }, next);
            }
        }
        let is_answered = !state.ack_of_dead || state.ack.is_none();
        if !state.is_admitted && (is_answered || self.defect == Defect::LateAcknowledgement) {
            then(Action::Ask, self.asked(*state));
        }
        if state.goal.is_some_and(|goal| state.follower >= goal) {
            let mut next = *state;
            next.goal = None;
            then(Action::EndGuard, next);
        }
    }

    fn keeps(&self, state: &State, promise: &str) -> bool {
        if promise == VOTES {
            return !state.voted_without;
        }
        // Otherwise openraft sends the same request for ever, whatever is allowed later.
        state.may_match >= state.matched
    }
}

impl CatchUp {
    fn asked(&self, mut state: State) -> State {
        let asks = state.goal.is_some() || !state.fits;
        if asks && self.defect != Defect::AlwaysAllowed {
            state.may_revert = true;
            if state.goal.is_some() || state.matched > state.follower {
                state.goal = state.goal.max(Some(state.leader));
            }
        }
        state.is_admitted = true;
        state
    }

    fn send(&self, state: &State, then: &mut dyn FnMut(Action, State)) {
        if !state.is_admitted {
            return;
        }
        let heartbeat = state.matched;
        if state.follower < heartbeat {
            then(Action::Heartbeat, self.conflict(*state, heartbeat));
        }
        let before = u8::midpoint(state.matched, state.may_match.max(state.matched));
        if state.follower < before {
            let len = state.leader;
            then(Action::Append { len }, self.conflict(*state, before));
            return;
        }
        for len in before..=state.leader {
            let mut next = *state;
            next.voted_without |= state.goal.is_none() && state.acknowledged > state.follower;
            next.follower = state.follower.max(len);
            next.fits = true;
            next.ack = state.ack.filter(|_| !state.ack_of_dead).max(Some(len));
            next.ack_of_dead = false;
            next.acknowledged = state.acknowledged.max(len);
            then(Action::Append { len }, next);
        }
    }

    /// The follower lacks entry `before`: the leader looks further back, and the connection ends.
    fn conflict(&self, mut state: State, before: u8) -> State {
        state.is_admitted = false;
        if before > state.may_match {
            return state;
        }
        state.may_match = before - 1;
        if before <= state.matched && (state.may_revert || self.defect == Defect::AlwaysAllowed) {
            state.matched = 0;
            state.may_revert = false;
        }
        state
    }
}

fn model(defect: Defect) -> CatchUp {
    let wide = u8::from(super::is_long());
    CatchUp {
        defect,
        entries: 4 + 2 * wide,
        deaths: 3 + wide,
    }
}

#[test]
fn a_follower_that_lost_entries_catches_up_and_is_guarded_meanwhile() {
    holds("catch up", &model(Defect::None));
}

#[test]
fn a_leader_that_is_not_asked_never_goes_back() {
    refuted("catch up, never asks", &model(Defect::NeverAsks), STUCK, 5);
}

#[test]
fn a_leader_that_always_goes_back_hides_the_loss() {
    refuted(
        "catch up, always allowed",
        &model(Defect::AlwaysAllowed),
        VOTES,
        8,
    );
}

#[test]
fn an_answer_before_the_last_acknowledgement_hides_the_loss_but_nothing_is_stuck() {
    let late = model(Defect::LateAcknowledgement);
    refuted("catch up, late acknowledgement", &late, VOTES, 4);
    keeps("catch up, late acknowledgement", &late, &[STUCK]);
}
