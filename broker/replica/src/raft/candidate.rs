//! Whether this node may take the leadership over, by its own word, and taking it over.
//!
//! A leader asks before it hands over, and again on the same connection just before its request:
//! only the node itself knows that its disk is full or stalled, or that it lost the end of its log.
//! openraft would elect it all the same (0.10.0-alpha.37): a transfer ignores whether a node may
//! stand for election. A request that comes late, because this node was paused for example, is
//! refused: the leader has gone on meanwhile, and an election with a shorter log is lost and costs
//! the group its leader.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, Bytes};
use openraft::{Raft, raft::TransferLeaderRequest};
use raftmq_store::CommitLog;
use tokio::time::{Instant, timeout};

use super::{
    guard::VoteGuard,
    machine::RaftMachine,
    types::TypeConfig,
    wire::{self, Kind},
};

/// How long the word of a node holds. The leader's request follows within a round trip.
const AGREED_FOR: Duration = Duration::from_secs(1);
/// Longest wait for this node's own flush before it stands: shorter than the leader waits for its
/// successor, so that nobody stands after the leader has given up.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// A node with an older unflushed write does not take over from one whose disk is stalled: they may
/// share it. Half of what counts as a stall.
const UNFLUSHED_MAX: Duration = Duration::from_millis(250);
/// Stalls that lie back longer are forgotten.
const STALLS_REMEMBERED: Duration = Duration::from_secs(60);

/// Hand-overs because of stalled disks in which this node had a part. Where brokers share a disk, each
/// would otherwise send the leadership on to the next.
#[derive(Debug, Default)]
pub struct Stalls(Mutex<Option<Stall>>);

#[derive(Clone, Copy, Debug)]
struct Stall {
    at: Instant,
    in_a_row: u8,
    /// Whether this node's disk was stalled, not that of the leader before.
    own: bool,
}

impl Stalls {
    fn latest(&self) -> Option<Stall> {
        let latest = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        latest.filter(|stall| stall.at.elapsed() < STALLS_REMEMBERED)
    }

    /// How many there were in a row, as far as they are remembered.
    pub fn in_a_row(&self) -> u8 {
        self.latest().map_or(0, |stall| stall.in_a_row)
    }

    /// Takes note of the one that is number `in_a_row`.
    pub fn note(&self, in_a_row: u8, own: bool) {
        let at = Instant::now();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Stall { at, in_a_row, own });
    }
}

/// See the file comment.
#[derive(Debug)]
pub(super) struct Candidate {
    id: u64,
    raft: Raft<TypeConfig, RaftMachine>,
    guard: Arc<VoteGuard>,
    log: Arc<CommitLog>,
    pub stalls: Arc<Stalls>,
}

/// That a node has said on this connection that it may lead.
#[derive(Debug)]
pub(super) struct Agreed {
    at: Instant,
    /// Number in a row of the stalled disk that is the reason; 0 = another reason.
    stalls: u8,
}

impl Candidate {
    pub(super) fn new(
        id: u64,
        raft: &Raft<TypeConfig, RaftMachine>,
        guard: &Arc<VoteGuard>,
        log: &Arc<CommitLog>,
    ) -> Self {
        Self {
            id,
            raft: raft.clone(),
            guard: Arc::clone(guard),
            log: Arc::clone(log),
            stalls: Arc::default(),
        }
    }

    /// Whether this node may lead, or why not. `stalls`: see [`encode_question`].
    pub(super) async fn may_lead(&self, stalls: u8) -> Result<Agreed, String> {
        self.guard.check_stand()?;
        let id = self.id;
        let votes = self.raft.with_raft_state(move |state| {
            let membership = state.membership_state.effective();
            membership.voter_ids().any(|voter| voter == id)
        });
        if !votes.await.map_err(|error| error.to_string())? {
            return Err(format!("node {id} is no voter"));
        }
        if stalls > 0 && self.stalls.latest().is_some_and(|stall| stall.own) {
            return Err(format!("the disk of node {id} was stalled a moment ago"));
        }
        let unflushed = self.log.oldest_unflushed_since();
        if stalls > 0 && unflushed.is_some_and(|age| age > UNFLUSHED_MAX) {
            return Err(format!("the disk of node {id} is stalled too"));
        }
        let at = Instant::now();
        Ok(Agreed { at, stalls })
    }

    /// Stands for election if the request is for this node; if not, its vote is set free. The
    /// reason why not, if refused.
    ///
    /// # Errors
    /// When Raft stopped.
    pub(super) async fn take_over(
        &self,
        request: TransferLeaderRequest<TypeConfig>,
        agreed: Option<Agreed>,
    ) -> Result<Result<(), String>, io::Error> {
        if *request.to_node_id() == self.id {
            let agreed = agreed.filter(|agreed| agreed.at.elapsed() < AGREED_FOR);
            let Some(agreed) = agreed else {
                return Ok(Err("the request to take over comes late".into()));
            };
            if let Err(reason) = self.guard.check_stand() {
                return Ok(Err(reason));
            }
            if agreed.stalls > 0 {
                self.stalls.note(agreed.stalls, false);
            }
        }
        // openraft stands only if the vote is still that of the request.
        match timeout(FLUSH_MAX, self.raft.handle_transfer_leader(request)).await {
            Ok(Ok(result)) => Ok(result.map_err(|error| error.to_string())),
            Ok(Err(fatal)) => Err(io::Error::other(fatal)),
            Err(_) => Ok(Err("the log is not flushed in time".into())),
        }
    }
}

/// The question whether a node may lead. `stalls`: number in a row of the stalled disk that is the
/// reason, 0 for another reason.
pub(super) fn encode_question(stalls: u8) -> Bytes {
    wire::encode_raw(Kind::MayLead, &[stalls])
}

pub(super) fn decode_question(mut body: Bytes) -> Result<u8, io::Error> {
    body.try_get_u8()
        .map_err(|_| wire::malformed("question whether it may lead"))
}

/// The answer to the question or to the request: nothing for yes, or the reason.
pub(super) fn encode_answer<T>(kind: Kind, answer: &Result<T, String>) -> Bytes {
    let reason = answer.as_ref().err().map_or("", String::as_str);
    wire::encode_raw(kind, reason.as_bytes())
}

pub(super) fn decode_answer(body: &[u8]) -> Result<(), String> {
    if body.is_empty() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(body).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn stalls_are_counted_and_forgotten() {
        let stalls = Stalls::default();
        assert_eq!(stalls.in_a_row(), 0);
        stalls.note(3, true);
        assert_eq!(stalls.in_a_row(), 3);
        assert!(stalls.latest().unwrap().own);
        tokio::time::advance(STALLS_REMEMBERED).await;
        assert_eq!(stalls.in_a_row(), 0);
    }

    #[test]
    fn questions_and_answers_survive_the_wire() {
        let body = |frame: Bytes, kind| {
            let taken = wire::take_frame(&mut frame.as_ref().into())
                .unwrap()
                .unwrap();
            assert_eq!(taken.0, kind);
            taken.1
        };
        let question = body(encode_question(7), Kind::MayLead);
        assert_eq!(decode_question(question).unwrap(), 7);
        assert!(decode_question(Bytes::new()).is_err());
        for answer in [Ok(()), Err("full".to_owned())] {
            let sent = encode_answer(Kind::MayLeadResult, &answer);
            assert_eq!(decode_answer(&body(sent, Kind::MayLeadResult)), answer);
        }
    }
}
