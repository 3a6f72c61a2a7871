//! A node that lost the end of its log casts no vote until the log is complete again (raft:I3).
//!
//! It may have acknowledged what is gone, and a leader may have committed that with its word. If it
//! voted, two nodes without those entries could elect one of themselves. So it grants no vote and no
//! pre-vote, takes over from nobody and does not stand, across restarts, until it has applied
//! everything up to the end of the log that a leader had when it was asked after the start, the goal:
//!
//! - what this leader counts as acknowledged by this node, lost or not, is before that end;
//! - what earlier leaders committed is in the log of every later leader, since this node's vote
//!   elected none of them;
//! - the end of a leader's log has the leader's own term, so having applied it means that all of it
//!   is committed.
//!
//! The commit index that a leader tells would not do: the leader may yet commit an entry on the
//! strength of an acknowledgement that this node gave before it lost the entry. Nor would the end of
//! the log of a node that has just begun to follow: that leader's log goes on.
//!
//! For the same reasons it may vote for a candidate whose log reaches the goal, or ends in a later
//! term than that of this node's own vote when it lost the entries: it acknowledged nothing to a
//! leader of such a term, and that leader was elected without its word for what is gone. So a group
//! of three in which another disk is lost as well still elects the third node, if that has everything
//! for certain.
//!
//! A loss is known in two ways. The start finds that the log ends before what was synced. Or the
//! leader counts more as acknowledged than this node has: a disk did not keep what it had synced, or
//! an older copy of the volume came back. So each leader is asked, from the start until its entries
//! fit. With `ASYNC_FLUSH` the latter is what a power cut may do by contract: then the node goes on
//! voting.
//!
//! A leader that remembers acknowledgements of this node would not send the lost entries again, and
//! would not believe the node's word that they are missing. To be asked makes it ready to begin anew
//! with the asker. So no entry and no heartbeat is taken from it before.
//!
//! `tests/models/guard.rs` has all of it as a model.
//!
//! ```text
//!   question:  no body
//!   answer:    1 if it leads, else 0 | vote | id of its last entry | last that it counts as
//!              acknowledged by the asker
//! ```

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::{Raft, async_runtime::watch::WatchReceiver};
use raftmq_store::{CommitLog, FlushPolicy};
use tokio::{
    runtime::Handle,
    time::{sleep, timeout},
};

use super::{
    ConsensusParts,
    candidacy::{Candidacy, Objection},
    dead_leader::DeadLeader,
    log_store::decode_vote,
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
/// Longest wait for the leader's answer, at each of its addresses: it waits longer for ours.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Decides whether this node takes part in elections.
pub(super) struct VoteGuard {
    runtime: Handle,
    raft: Raft<TypeConfig, RaftMachine>,
    transport: Transport,
    /// Ids and addresses of the configuration.
    configured: Vec<(u64, String)>,
    log: Arc<CommitLog>,
    dead_leader: Arc<DeadLeader>,
    candidacy: Candidacy,
    /// `None`: this node votes.
    lost: Mutex<Option<Lost>>,
    /// Held while the guard begins or ends, on disk and here.
    changing: tokio::sync::Mutex<()>,
    /// Leaders whose entries have fitted since the start: they count nothing that is not here.
    fitted: Mutex<BTreeSet<u64>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for VoteGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VoteGuard")
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

/// What tells whether a log has everything that this node may have acknowledged and lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lost {
    /// Term of this node's vote after the loss: it had acknowledged nothing of a later one.
    term: u64,
    /// The latest end of a leader's log that this node was told after the loss.
    goal: Option<LogId>,
}

impl Lost {
    fn of(vote: Option<Vote>) -> Self {
        let term = vote.map_or(0, |vote| vote.leader_id.term);
        Self { term, goal: None }
    }

    /// Any goal would do; one that never falls needs no second thought.
    fn aim_at(&mut self, last: LogId) {
        self.goal = self.goal.max(Some(last));
    }

    /// Whether all of it is in the log of a candidate that ends with `last`.
    fn is_in(&self, last: Option<LogId>) -> bool {
        let reaches = |last| self.goal.is_some_and(|goal| last >= goal);
        last.is_some_and(|last| last.committed_leader_id().term > self.term || reaches(last))
    }

    /// Whether everything up to the goal is applied here, and on disk.
    fn is_back(&self, applied: Option<LogId>, flushed: Option<u64>) -> bool {
        let reached = |goal: LogId| applied >= Some(goal) && flushed >= Some(goal.index());
        self.goal.is_some_and(reached)
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
        let candidacy = {
            let (raft, dead_leader) = (raft.clone(), Arc::clone(&dead_leader));
            Candidacy::new(move |may| {
                raft.runtime_config().elect(may);
                dead_leader.stand(may);
            })
        };
        candidacy.object(Objection::NoRoom, !may_lead(parts));
        let this = Arc::new(Self {
            runtime: runtime.clone(),
            raft: raft.clone(),
            transport: transport.clone(),
            configured: peers.map(|peer| (peer.id, peer.address.clone())).collect(),
            log: Arc::clone(log),
            dead_leader,
            candidacy,
            lost: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            fitted: Mutex::default(),
            metrics: Arc::clone(metrics),
        });
        metrics.raft.votes_withheld.set(0);
        if log.is_guarded() {
            // A vote that does not read would have kept Raft from starting.
            let vote = log.read_vote().and_then(|vote| decode_vote(&vote).ok());
            this.withhold(vote);
        }
        this
    }

    /// Takes note that the connection on which `peer` sends entries has ended.
    pub(super) fn connection_ended(&self, peer: u64) {
        self.dead_leader.connection_ended(peer);
    }

    fn lost(&self) -> Option<Lost> {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this node may stand for election from now on, as far as its disk is concerned.
    pub(super) fn stand(&self, may: bool) {
        self.candidacy.object(Objection::NoRoom, !may);
    }

    /// Whether this node may answer a vote or a pre-vote of a candidate whose log ends with `last`,
    /// or, without one, a transfer.
    ///
    /// # Errors
    /// The reason why not.
    pub(super) fn check_vote(&self, last: Option<LogId>) -> Result<(), io::Error> {
        if self.lost().is_none_or(|lost| lost.is_in(last)) {
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
        self.check_vote(None).map_err(|error| error.to_string())?;
        if !self.candidacy.is_objected(Objection::NoRoom) {
            return Ok(());
        }
        let id = self.transport.local.id;
        Err(format!("the disk of node {id} is full"))
    }

    /// Whether entries and heartbeats may be taken from `peer`. A guarded node first learns where that
    /// leader's log ends, and one that does not know yet whether it lost anything what it counts.
    ///
    /// # Errors
    /// When the peer does not answer or does not lead.
    pub(super) async fn admit(self: &Arc<Self>, peer: u64) -> Result<Admission, io::Error> {
        if self.lost().is_none() {
            // One that knows no members has never had a leader.
            let is_unknown = self.addresses(peer).is_empty();
            let fitted = self.fitted.lock().unwrap_or_else(PoisonError::into_inner);
            if is_unknown || fitted.contains(&peer) {
                return Ok(Admission::Welcome);
            }
        }
        let told = self.ask(peer).await?;
        let own = self.raft.with_raft_state(|state| *state.vote_ref());
        let own = own.await.map_err(io::Error::other)?;
        if told.is_before(&own) {
            return Ok(Admission::Deposed(own));
        }
        self.compare(peer, &told).await?;
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = &mut *lost {
            lost.aim_at(told.last);
            tracing::info!(leader = peer, goal = ?lost.goal, "votes again once it is applied");
        }
        Ok(Admission::Welcome)
    }

    /// Takes note that entries of `peer` follow on what is here.
    pub(super) fn entries_fit(&self, peer: u64) {
        let mut fitted = self.fitted.lock().unwrap_or_else(PoisonError::into_inner);
        fitted.insert(peer);
    }

    /// Withholds votes if this node lacks what a leader counts as acknowledged by it.
    async fn compare(self: &Arc<Self>, peer: u64, told: &LeaderEnd) -> Result<(), io::Error> {
        let last = (self.raft).with_raft_state(|state| state.log_ids.last().copied());
        let last = last.await.map_err(io::Error::other)?;
        if told.acknowledged <= last {
            return Ok(());
        }
        tracing::warn!(
            leader = peer,
            ?last,
            acknowledged = ?told.acknowledged,
            "this node lacks entries that it has acknowledged"
        );
        if matches!(self.log.config().flush, FlushPolicy::Async { .. }) {
            return Ok(());
        }
        // To its end, whatever becomes of the connection.
        let begun = self.runtime.spawn(Arc::clone(self).begin(told.vote));
        begun.await.map_err(io::Error::other)?
    }

    /// Withholds votes from now on; durable before entries are taken, which make the leader forget.
    /// The vote is the leader's: this node's own may have come from an older copy.
    async fn begin(self: Arc<Self>, vote: Vote) -> Result<(), io::Error> {
        let _changing = self.changing.lock().await;
        if self.lost().is_some() {
            return Ok(());
        }
        let log = Arc::clone(&self.log);
        blocking(move || log.begin_guard())
            .await
            .map_err(io::Error::other)?;
        self.withhold(Some(vote));
        Ok(())
    }

    fn withhold(self: &Arc<Self>, vote: Option<Vote>) {
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(Lost::of(vote));
        self.candidacy.object(Objection::EndLost, true);
        self.metrics.raft.votes_withheld.set(1);
        tracing::warn!("this node lost the end of its log; it casts no vote until it is back");
        self.runtime.spawn(Arc::clone(self).watch());
    }

    /// Where a peer may be: what the membership says, and what the configuration does. A node that lost
    /// all of its log knows no members, and one that was down for long may know an old address.
    fn addresses(&self, peer: u64) -> Vec<String> {
        let known = self.transport.local.members.addresses().into_iter();
        let known = known.chain(self.configured.iter().cloned());
        let mut addresses: Vec<String> = (known.filter(|(id, _)| *id == peer))
            .map(|(_, address)| address)
            .collect();
        addresses.dedup();
        addresses
    }

    /// Asks a leader where its log ends and what it counts. It is then ready to begin anew.
    async fn ask(&self, peer: u64) -> Result<LeaderEnd, io::Error> {
        let mut told = Err(io::Error::other(format!("node {peer} is unknown")));
        for address in self.addresses(peer) {
            told = (timeout(ANSWER_TIMEOUT, self.ask_at(peer, &address)).await)
                .unwrap_or_else(|elapsed| Err(elapsed.into()));
            if told.is_ok() {
                break;
            }
        }
        told?
            .filter(|told| told.is_of_leader(peer))
            .ok_or_else(|| io::Error::other(format!("node {peer} does not lead")))
    }

    async fn ask_at(&self, peer: u64, address: &str) -> Result<Option<LeaderEnd>, io::Error> {
        let Transport { net, local, .. } = &self.transport;
        let mut connection =
            peer::connect_leader(net, local, peer, address, Channel::Repair).await?;
        let frame = wire::encode_raw(Kind::LogEnd, &[]);
        let body = connection.call(&frame, Kind::LogEndResult).await?;
        decode_answer(body)
    }

    /// Ends the guard as soon as the log is complete.
    async fn watch(self: Arc<Self>) {
        while let Some(lost) = self.lost() {
            sleep(LOOK_INTERVAL).await;
            let applied = self.raft.metrics().borrow_watched().last_applied;
            if !lost.is_back(applied, self.log.flushed_index()) {
                continue;
            }
            let _changing = self.changing.lock().await;
            let log = Arc::clone(&self.log);
            if let Err(error) = blocking(move || log.end_guard()).await {
                tracing::error!(%error, "save that this node votes again");
                continue;
            }
            *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.metrics.raft.votes_withheld.set(0);
            self.candidacy.object(Objection::EndLost, false);
            tracing::warn!("the log is complete again; this node votes");
        }
    }
}

/// What becomes of a leader that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Its entries are taken.
    Welcome,
    /// This node has this vote of a later term. The leader must hear of it: it leads the others, so
    /// nobody votes for this node, which follows nobody else.
    Deposed(Vote),
}

/// What a leader says of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeaderEnd {
    pub vote: Vote,
    /// Its last entry.
    pub last: LogId,
    /// The last entry that it counts as acknowledged by the node that asks.
    pub acknowledged: Option<LogId>,
}

impl LeaderEnd {
    /// Whether it comes from `id` as the leader of its term, and not from one that has begun to
    /// follow another meanwhile: then its log ends somewhere in the other's.
    fn is_of_leader(&self, id: u64) -> bool {
        let is_leader = self.vote.committed && self.vote.leader_id.voted_for == id;
        is_leader && self.last.committed_leader_id().term == self.vote.leader_id.term
    }

    /// Whether the one that has this vote may have acknowledged entries to a later leader.
    fn is_before(&self, own: &Vote) -> bool {
        self.vote.leader_id.term < own.leader_id.term
    }
}

/// The leader's side: answers node `from` where the log of this node, `id`, ends, and is ready to begin
/// anew with it.
pub(super) async fn answer_end(
    raft: &Raft<TypeConfig, RaftMachine>,
    id: u64,
    from: u64,
) -> Result<Bytes, io::Error> {
    // Remembered until it is made use of. A leader of a later term needs no permission.
    let allowed = raft.trigger().allow_next_revert(&from, true).await;
    let allowed = allowed.map_err(io::Error::other)?.is_ok();
    let state = raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().copied()));
    let (vote, last) = state.await.map_err(io::Error::other)?;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let is_same = metrics.current_term == vote.leader_id.term;
    let replication = metrics.replication.as_ref().filter(|_| allowed && is_same);
    // A leader whose progress is not known yet is asked again.
    let acknowledged = replication.map(|progress| progress.get(&from).copied().flatten());
    let end = last
        .zip(acknowledged)
        .map(|(last, acknowledged)| LeaderEnd {
            vote,
            last,
            acknowledged,
        });
    Ok(encode_answer(
        end.filter(|end| end.is_of_leader(id)).as_ref(),
    ))
}

pub(super) fn encode_answer(end: Option<&LeaderEnd>) -> Bytes {
    let mut out = BytesMut::with_capacity(96);
    wire::put_frame(&mut out, Kind::LogEndResult, |out| {
        out.put_u8(u8::from(end.is_some()));
        if let Some(end) = end {
            wire::put_vote(out, &end.vote);
            wire::put_log_id(out, Some(&end.last));
            wire::put_log_id(out, end.acknowledged.as_ref());
        }
    });
    out.freeze()
}

/// `None` when the sender does not lead.
pub(super) fn decode_answer(mut body: Bytes) -> Result<Option<LeaderEnd>, io::Error> {
    let body = &mut body;
    let mut decode = || {
        if body.try_get_u8().ok()? == 0 {
            return Some(None);
        }
        let vote = wire::get_vote(body)?;
        let (last, acknowledged) = (wire::get_log_id(body)??, wire::get_log_id(body)?);
        Some(Some(LeaderEnd {
            vote,
            last,
            acknowledged,
        }))
    };
    decode().ok_or_else(|| wire::malformed("log end result"))
}

#[cfg(test)]
mod tests {
    use openraft::vote::leader_id_std::LeaderId;

    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new_term_index(term, index)
    }

    fn vote(term: u64, voted_for: u64) -> Vote {
        Vote {
            leader_id: LeaderId { term, voted_for },
            committed: true,
        }
    }

    fn end(leader: u64) -> LeaderEnd {
        LeaderEnd {
            vote: vote(5, leader),
            last: id(5, 90),
            acknowledged: Some(id(4, 70)),
        }
    }

    #[test]
    fn the_guard_ends_when_the_end_of_the_leaders_log_is_applied_and_on_disk() {
        let mut lost = Lost::of(Some(vote(5, 1)));
        let applied = Some(id(5, 90));
        assert!(!lost.is_back(applied, Some(90)), "no leader yet");
        lost.aim_at(id(5, 90));
        assert!(!lost.is_back(None, None));
        assert!(!lost.is_back(Some(id(5, 89)), Some(95)));
        assert!(!lost.is_back(Some(id(4, 99)), Some(99)));
        assert!(!lost.is_back(applied, Some(89)), "not on disk");
        assert!(lost.is_back(applied, Some(90)));
    }

    #[test]
    fn the_goal_only_grows() {
        let mut lost = Lost::of(None);
        for (told, goal) in [
            (id(5, 90), id(5, 90)),
            (id(4, 99), id(5, 90)),
            (id(5, 89), id(5, 90)),
            (id(6, 3), id(6, 3)),
        ] {
            lost.aim_at(told);
            assert_eq!(lost.goal, Some(goal));
        }
    }

    #[test]
    fn only_a_candidate_that_has_for_certain_what_is_lost_gets_a_vote() {
        let mut lost = Lost::of(Some(vote(5, 1)));
        assert!(!lost.is_in(None));
        assert!(
            !lost.is_in(Some(id(5, 1_000))),
            "what was lost is not known"
        );
        assert!(
            lost.is_in(Some(id(6, 1))),
            "nothing of term 6 was acknowledged"
        );
        lost.aim_at(id(5, 90));
        assert!(!lost.is_in(Some(id(5, 89))));
        assert!(lost.is_in(Some(id(5, 90))));
        assert!(!lost.is_in(Some(id(4, 1_000))));
        assert!(!lost.is_in(None), "it takes over from nobody");
    }

    #[test]
    fn only_the_leader_of_its_term_tells_where_a_log_ends() {
        assert!(end(2).is_of_leader(2));
        // It led, and follows node 3 by now, with a part of its entries.
        assert!(!end(3).is_of_leader(2));
        let mut candidate = end(2);
        candidate.vote.committed = false;
        assert!(!candidate.is_of_leader(2));
        let mut without_entry = end(2);
        without_entry.last = id(4, 90);
        assert!(!without_entry.is_of_leader(2));
        assert!(end(2).is_before(&vote(6, 3)));
        assert!(!end(2).is_before(&vote(5, 3)), "it voted for another one");
    }

    #[test]
    fn questions_and_answers_survive_the_wire() {
        let body_of = |frame: Bytes, expected| {
            let (kind, body) = wire::take_frame(&mut BytesMut::from(&frame[..]))
                .unwrap()
                .unwrap();
            assert_eq!(kind, expected);
            body
        };
        let body = body_of(encode_answer(Some(&end(2))), Kind::LogEndResult);
        assert_eq!(decode_answer(body.clone()).unwrap(), Some(end(2)));
        for cut in 0..body.len() {
            assert!(decode_answer(body.slice(..cut)).is_err(), "cut at {cut}");
        }
        let none = body_of(encode_answer(None), Kind::LogEndResult);
        assert_eq!(decode_answer(none).unwrap(), None);
    }
}
