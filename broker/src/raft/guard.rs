//! A node that lost the end of its log casts no vote until the log is complete again (raft:I3).
//!
//! It may have acknowledged what is gone, and a leader may have committed that with its word. If it
//! voted, two nodes without those entries could elect one of themselves. So it grants no vote and no
//! pre-vote, takes over from nobody and does not stand, across restarts, until it has applied
//! everything up to the end of the log that a leader had when it was asked after the start:
//!
//! - what this leader counts as acknowledged by this node, lost or not, is before that end;
//! - what earlier leaders committed is in the log of every later leader, since this node's vote
//!   elected none of them;
//! - the end of a leader's log has the leader's own term, so having applied it means that all of it
//!   is committed.
//!
//! The commit index that a leader tells would not do: the leader may yet commit an entry on the
//! strength of an acknowledgement that this node gave before it lost the entry.
//!
//! A leader that remembers acknowledgements of this node would not send the lost entries again. So
//! before this node takes entries from it, it is told; it then begins anew with this node.
//!
//! ```text
//!   end lost:  no body          answer: 1 if it leads, else 0 | vote | id of its last entry
//! ```

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{Raft, async_runtime::watch::WatchReceiver};
use raftmq_store::CommitLog;
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    ConsensusParts,
    dead_leader::DeadLeader,
    machine::RaftMachine,
    may_lead, peer,
    repair::blocking,
    transport::Transport,
    types::{LogId, TypeConfig, Vote},
    wire::{self, Channel, Kind},
};
use crate::metrics::Metrics;

/// Pause between looks whether the log is complete.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the leader's answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Decides whether this node takes part in elections.
pub(super) struct VoteGuard {
    raft: Raft<TypeConfig, RaftMachine>,
    transport: Transport,
    /// Ids and addresses of the configuration.
    configured: Vec<(u64, String)>,
    log: Arc<CommitLog>,
    dead_leader: Arc<DeadLeader>,
    guarded: AtomicBool,
    /// Whether it would stand for election, were it not for the guard.
    would_stand: AtomicBool,
    /// The end of the log of the leader heard last.
    goal: Mutex<Option<LogId>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for VoteGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VoteGuard")
            .field("guarded", &self.guarded)
            .finish_non_exhaustive()
    }
}

impl VoteGuard {
    /// Begins with what the log says, and watches until it is complete again.
    pub(super) fn start(
        runtime: &Handle,
        raft: &Raft<TypeConfig, RaftMachine>,
        transport: &Transport,
        parts: &ConsensusParts,
    ) -> Arc<Self> {
        let (log, metrics) = (parts.machine.log(), &parts.metrics);
        let dead_leader = DeadLeader::new(transport.local.id, raft.clone(), transport.clone());
        let peers = parts.raft.peers.iter();
        let guarded = log.is_guarded();
        let may_stand = may_lead(parts);
        metrics.raft.votes_withheld.set(i64::from(guarded));
        let this = Arc::new(Self {
            raft: raft.clone(),
            transport: transport.clone(),
            configured: peers.map(|peer| (peer.id, peer.address.clone())).collect(),
            log: Arc::clone(log),
            dead_leader,
            guarded: AtomicBool::new(guarded),
            would_stand: AtomicBool::new(may_stand),
            goal: Mutex::default(),
            metrics: Arc::clone(metrics),
        });
        if guarded {
            tracing::warn!("this node lost the end of its log; it casts no vote until it is back");
            runtime.spawn(Arc::clone(&this).watch());
        }
        this.stand(may_stand);
        this
    }

    /// Takes note that the connection on which `peer` sends entries has ended.
    pub(super) fn connection_ended(&self, peer: u64) {
        self.dead_leader.connection_ended(peer);
    }

    fn is_guarded(&self) -> bool {
        self.guarded.load(Ordering::SeqCst)
    }

    /// Whether this node may stand for election from now on, as far as its disk is concerned.
    pub(super) fn stand(&self, may: bool) {
        self.would_stand.store(may, Ordering::SeqCst);
        let may = may && !self.is_guarded();
        self.raft.runtime_config().elect(may);
        self.dead_leader.stand(may);
    }

    /// Whether this node may answer a vote, a pre-vote or a transfer.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check_vote(&self) -> Result<(), io::Error> {
        if !self.is_guarded() {
            return Ok(());
        }
        let id = self.transport.local.id;
        Err(io::Error::other(format!(
            "no vote: node {id} lost the end of its log and has not got it back yet"
        )))
    }

    /// Whether this node may take over from a leader.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check_stand(&self) -> Result<(), String> {
        self.check_vote().map_err(|error| error.to_string())?;
        if self.would_stand.load(Ordering::SeqCst) {
            return Ok(());
        }
        let id = self.transport.local.id;
        Err(format!("the disk of node {id} is full"))
    }

    /// Whether entries and heartbeats may be taken from `peer`. A guarded node first tells it that
    /// it lost entries, and learns where that leader's log ends.
    ///
    /// # Errors
    /// When the peer does not answer or does not lead.
    pub(super) async fn admit(&self, peer: u64) -> Result<(), io::Error> {
        if !self.is_guarded() {
            return Ok(());
        }
        let (vote, last) = timeout(ANSWER_TIMEOUT, self.tell(peer)).await??;
        let own = self.raft.with_raft_state(|state| *state.vote_ref());
        let own = own.await.map_err(io::Error::other)?;
        if vote.leader_id.term < own.leader_id.term {
            return Err(io::Error::other("a leader of an earlier term"));
        }
        tracing::info!(leader = peer, last = ?last, "votes again once this entry is applied");
        *self.goal.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        Ok(())
    }

    async fn tell(&self, peer: u64) -> Result<(Vote, LogId), io::Error> {
        let Transport { net, local, .. } = &self.transport;
        // A node that lost all of its log knows no members.
        let known = local.members.addresses().into_iter();
        let mut known = known.chain(self.configured.iter().cloned());
        let (_, address) = known
            .find(|(id, _)| *id == peer)
            .ok_or_else(|| io::Error::other(format!("node {peer} is unknown")))?;
        let mut connection = peer::connect(net, local, peer, &address, Channel::Repair).await?;
        let frame = wire::encode_raw(Kind::EndLost, &[]);
        let body = connection.call(&frame, Kind::EndLostResult).await?;
        match decode_answer(body)? {
            Some(told) => Ok(told),
            None => Err(io::Error::other(format!("node {peer} does not lead"))),
        }
    }

    /// Ends the guard as soon as the log is complete.
    async fn watch(self: Arc<Self>) {
        while self.is_guarded() {
            sleep(LOOK_INTERVAL).await;
            if !self.is_complete() {
                continue;
            }
            let log = Arc::clone(&self.log);
            if let Err(error) = blocking(move || log.end_guard()).await {
                tracing::error!(%error, "save that this node votes again");
                continue;
            }
            self.guarded.store(false, Ordering::SeqCst);
            self.metrics.raft.votes_withheld.set(0);
            self.stand(self.would_stand.load(Ordering::SeqCst));
            tracing::warn!("the log is complete again; this node votes");
        }
    }

    /// Whether everything up to the goal is applied and on this node's disk.
    fn is_complete(&self) -> bool {
        let goal = *self.goal.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = self.raft.metrics().borrow_watched().last_applied;
        is_reached(goal, applied, self.log.flushed_index())
    }
}

fn is_reached(goal: Option<LogId>, applied: Option<LogId>, flushed: Option<u64>) -> bool {
    goal.is_some_and(|goal| applied >= Some(goal) && flushed >= Some(goal.index()))
}

/// The leader's side: begins anew with node `from`, and answers where its log ends.
pub(super) async fn begin_anew(
    raft: &Raft<TypeConfig, RaftMachine>,
    from: u64,
) -> Result<Bytes, io::Error> {
    let allowed = raft.trigger().allow_next_revert(&from, true).await;
    let leads = allowed.map_err(io::Error::other)?.is_ok();
    let state = raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
    let (vote, last) = state.await.map_err(io::Error::other)?;
    let own_term = last.filter(|last| last.committed_leader_id().term == vote.leader_id.term);
    let told = own_term.filter(|_| leads && vote.committed);
    if told.is_some() {
        tracing::warn!(
            node = from,
            "a node lost the end of its log; it gets it again"
        );
    }
    Ok(encode_answer(&vote, told.as_ref()))
}

pub(super) fn encode_answer(vote: &Vote, last: Option<&LogId>) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    wire::put_frame(&mut out, Kind::EndLostResult, |out| {
        out.put_u8(u8::from(last.is_some()));
        wire::put_vote(out, vote);
        wire::put_log_id(out, last);
    });
    out.freeze()
}

/// `None` when the sender does not lead.
pub(super) fn decode_answer(mut body: Bytes) -> Result<Option<(Vote, LogId)>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        let leads = body.try_get_u8().ok()? != 0;
        let (vote, last) = (wire::get_vote(body)?, wire::get_log_id(body)?);
        Some(last.filter(|_| leads).map(|last| (vote, last)))
    };
    decode().ok_or_else(|| wire::malformed("end lost result"))
}

#[cfg(test)]
mod tests {
    use openraft::vote::leader_id_std::LeaderId;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new_term_index(term, index)
    }

    #[test]
    fn the_guard_ends_when_the_end_of_the_leaders_log_is_applied_and_on_disk() {
        let goal = Some(id(5, 90));
        assert!(
            !is_reached(None, Some(id(5, 90)), Some(90)),
            "no leader yet"
        );
        assert!(!is_reached(goal, None, None));
        assert!(!is_reached(goal, Some(id(5, 89)), Some(95)));
        assert!(!is_reached(goal, Some(id(4, 99)), Some(99)));
        assert!(!is_reached(goal, Some(id(5, 90)), Some(89)), "not on disk");
        assert!(is_reached(goal, Some(id(5, 90)), Some(90)));
    }

    #[test]
    fn the_leaders_answer_survives_the_wire_and_others_give_no_goal() {
        let vote = Vote {
            leader_id: LeaderId {
                term: 5,
                voted_for: 2,
            },
            committed: true,
        };
        let body = |last| {
            let mut frame = BytesMut::from(&encode_answer(&vote, last)[..]);
            let (kind, body) = wire::take_frame(&mut frame).unwrap().unwrap();
            assert_eq!(kind, Kind::EndLostResult);
            body
        };
        let last = id(5, 90);
        let told = body(Some(&last));
        assert_eq!(
            decode_answer(told.clone()).unwrap(),
            Some((vote, id(5, 90)))
        );
        assert_eq!(decode_answer(body(None)).unwrap(), None);
        for cut in 0..told.len() {
            assert!(decode_answer(told.slice(..cut)).is_err(), "cut at {cut}");
        }
    }
}
