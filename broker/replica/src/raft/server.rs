//! Raft messages in: the listener on the Raft port.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use openraft::{
    EntryPayload, Raft,
    raft::{AppendEntriesRequest, StreamAppendError},
};
use raftmq_store::CommitLog;
use tokio::{sync::Semaphore, task::JoinSet, time::sleep};

use super::{
    candidate::{self, Agreed, Candidate},
    forward::{self, ForwardHandler},
    guard::{self, Admission, VoteGuard},
    intake::Intake,
    log_store::SnapshotBoundary,
    machine::{RaftMachine, receive_snapshot},
    members,
    peer::{self, Local, PeerConnection, PeerReader},
    pulse::Pulse,
    repair::{RepairSource, serve_ranges},
    runtime::timed,
    snapshot_intake::{SnapshotIntake, Taken},
    types::{LogId, TypeConfig, Vote},
    wire::{self, Channel, Hello, Kind},
};
use crate::{
    checkpoint::Checkpoints,
    config::GroupFormation,
    disk_guard::{RoomLimits, room},
    metrics::Metrics,
    net::{Accepted, Listener},
};

/// Connections from peers at a time. A group of 7 with a few reconnects in flight uses 40.
const PEER_CONNECTIONS_MAX: usize = 256;
/// Answers to append requests that one write carries at most.
const ANSWERS_MAX: usize = 64;
/// What an entry without commands takes, generously.
const ENTRY_BYTES_SMALL: u64 = 1024;
/// How often and how long a request waits for room in the log: shorter than the leader waits for
/// its answer.
const ROOM_LOOKS_MAX: u32 = 40;
/// See [`ROOM_LOOKS_MAX`].
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Name of the listener in metrics.
const LISTENER: &str = "raft";

/// Serves peers until the listener breaks.
pub(crate) struct RaftServer {
    pub raft: Raft<TypeConfig, RaftMachine>,
    pub local: Local,
    pub formation: GroupFormation,
    pub boundary: SnapshotBoundary,
    pub snapshots: SnapshotIntake,
    pub guard: Arc<VoteGuard>,
    pub candidate: Candidate,
    pub forwards: Arc<dyn ForwardHandler>,
    /// Beats with the heartbeats of a leader.
    pub heard: Pulse,
    pub log: Arc<CommitLog>,
    pub checkpoints: Arc<Checkpoints>,
    pub room: RoomLimits,
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for RaftServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftServer")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl RaftServer {
    /// Accepts and serves connections.
    pub(crate) async fn serve(self: Arc<Self>, mut listener: Box<dyn Listener>) -> io::Error {
        let connections = Arc::new(Semaphore::new(PEER_CONNECTIONS_MAX));
        let intake = Arc::new(Intake::default());
        let mut tasks = JoinSet::new();
        loop {
            let accepted = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => return error,
            };
            while tasks.try_join_next().is_some() {}
            let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                tracing::warn!(peer = %accepted.peer, "refuse peer connection: too many");
                self.metrics.connections.refused(LISTENER);
                continue;
            };
            let open = self.metrics.connections.accepted(LISTENER);
            let (server, intake) = (Arc::clone(&self), Arc::clone(&intake));
            let serve = async move {
                let peer = accepted.peer;
                if let Err(error) = server.connection(accepted, &intake).await {
                    tracing::debug!(%peer, %error, "peer connection ends");
                }
                drop((permit, open));
            };
            tasks.spawn(timed("peer", serve));
        }
    }

    async fn connection(
        self: Arc<Self>,
        accepted: Accepted,
        intake: &Arc<Intake>,
    ) -> Result<(), io::Error> {
        let (mut connection, hello) = peer::accept(accepted.stream, &self.local).await?;
        connection.count_in(intake);
        let members = &self.local.members;
        let serve = async {
            match hello.channel {
                Channel::Append => self.append_stream(connection, &hello, None).await,
                Channel::Heartbeat => {
                    let heard = Some(&self.heard);
                    self.append_stream(connection, &hello, heard).await
                }
                Channel::Control => self.control(connection, &hello).await,
                Channel::Forward => forward::serve(connection, &*self.forwards).await,
                Channel::Repair => self.repair(connection, hello.from).await,
            }
        };
        tokio::select! {
            biased;
            result = serve => {
                // Not the heartbeats: only when the appends end, all of them are in the log.
                if hello.channel == Channel::Append {
                    self.guard.connection_ended(hello.from);
                }
                result
            }
            reason = members.until_refused(hello.from, &hello.incarnation),
                if hello.channel.is_for_members_only() => {
                members.refuse(hello.from, &hello.incarnation, &reason);
                Err(io::Error::other(reason))
            }
        }
    }

    /// Whether this node may take part in an election that the sender of `hello` asks it into.
    ///
    /// The membership is read from Raft itself, in the order of its messages: what connections
    /// were checked against may be a moment older. A node that waits to be formed into a group has
    /// an empty log, which may stand for a lost one: it helps nobody but a group that names its
    /// very folder, which therefore never had another log (raft:I2).
    ///
    /// `last` is where the log of the candidate ends; without it this node shall stand itself.
    async fn check_electoral(&self, hello: &Hello, last: Option<LogId>) -> Result<(), io::Error> {
        self.guard.check_vote(last)?;
        let from = hello.from;
        let state = self.raft.with_raft_state(move |state| {
            let membership = state.membership_state.effective();
            let named = membership
                .get_node(&from)
                .map(|node| node.incarnation.clone());
            (membership.log_id().is_some(), named.unwrap_or_default())
        });
        let (formed, named) = state.await.map_err(io::Error::other)?;
        if let Err(reason) = members::compare(from, &named, &hello.incarnation) {
            let members = &self.local.members;
            members.refuse(from, &hello.incarnation, &reason);
            return Err(io::Error::other(reason));
        }
        let named_here = hello.expects == self.local.incarnation;
        if formed || named_here || self.formation == GroupFormation::Peers {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "no vote for node {from}: this node waits to be formed into its group and that node's \
             membership does not name its incarnation"
        )))
    }

    /// `heard` beats with each request that a leader may send.
    async fn append_stream(
        &self,
        connection: PeerConnection,
        hello: &Hello,
        heard: Option<&Pulse>,
    ) -> Result<(), io::Error> {
        let admission = self.guard.admit(hello.from).await?;
        if let Admission::Deposed(own) = admission {
            return refuse_append(connection, own).await;
        }
        let PeerConnection {
            reader, mut writer, ..
        } = connection;
        let intake = (reader, Arc::clone(&self.log), self.room);
        let requests = stream::unfold(intake, |(mut reader, log, limits)| async move {
            match next_append(&mut reader).await {
                Ok(Some(request)) if !has_room(&log, limits, &request).await => {
                    tracing::debug!("append stream ends: the disk has no room for its entries");
                    None
                }
                Ok(Some(request)) => Some((request, (reader, log, limits))),
                Ok(None) => None,
                Err(error) => {
                    tracing::debug!(%error, "append stream ends");
                    None
                }
            }
        });
        // What is ready together leaves in one write: one flush often completes several.
        let mut results = Box::pin(self.raft.stream_append(requests).ready_chunks(ANSWERS_MAX));
        let mut answers = BytesMut::new();
        let mut fits = false;
        while let Some(ready) = results.next().await {
            for result in ready {
                let result = result.map_err(io::Error::other)?;
                match (heard, &result) {
                    (Some(heard), Ok(_)) => heard.beat(),
                    (None, Ok(_)) if !fits => {
                        self.guard.entries_fit(hello.from);
                        fits = true;
                    }
                    (None, Ok(_)) | (_, Err(_)) => {}
                }
                wire::put_append_result(&mut answers, &result);
            }
            writer.send(&answers).await?;
            answers.clear();
        }
        Ok(())
    }

    /// Ranges of the log for a node whose own is damaged.
    async fn repair(&self, mut connection: PeerConnection, from: u64) -> Result<(), io::Error> {
        let source = RepairSource {
            ranges: self.log.range_source(),
            checkpoints: Arc::clone(&self.checkpoints),
        };
        while let Some((kind, _)) = serve_ranges(&mut connection, &source).await? {
            if kind != Kind::LogEnd {
                return Err(wire::malformed("repair"));
            }
            let answer = guard::answer_end(&self.raft, self.local.id, from).await?;
            connection.writer.send(&answer).await?;
        }
        Ok(())
    }

    async fn control(
        &self,
        mut connection: PeerConnection,
        hello: &Hello,
    ) -> Result<(), io::Error> {
        let mut agreed = None;
        while let Some((kind, body)) = connection.reader.next().await? {
            let answer = match kind {
                Kind::Vote => {
                    let request = wire::decode_vote(body)?;
                    self.check_electoral(hello, request.last_log_id).await?;
                    let response = self.raft.vote(request).await.map_err(io::Error::other)?;
                    wire::encode_vote_result(&response)
                }
                Kind::PreVote => {
                    let request = wire::decode_vote(body)?;
                    self.check_electoral(hello, request.last_log_id).await?;
                    let response = self
                        .raft
                        .pre_vote(request)
                        .await
                        .map_err(io::Error::other)?;
                    wire::encode_vote_result(&response)
                }
                Kind::Transfer => {
                    let request = wire::decode_transfer(body)?;
                    self.check_electoral(hello, None).await?;
                    let answer = self.candidate.take_over(request, agreed.take()).await?;
                    candidate::encode_answer(Kind::TransferResult, &answer)
                }
                Kind::MayLead => {
                    let stalls = candidate::decode_question(body)?;
                    let answer = self.may_lead(hello, stalls).await;
                    let frame = candidate::encode_answer(Kind::MayLeadResult, &answer);
                    agreed = answer.ok();
                    frame
                }
                Kind::SnapshotBegin => self.snapshot(body, &mut connection, hello.from).await?,
                _ => return Err(wire::malformed("control")),
            };
            connection.writer.send(&answer).await?;
        }
        Ok(())
    }

    /// Whether this node may take over from the sender of `hello`, or why not.
    async fn may_lead(&self, hello: &Hello, stalls: u8) -> Result<Agreed, String> {
        let electoral = self.check_electoral(hello, None).await;
        electoral.map_err(|error| error.to_string())?;
        self.candidate.may_lead(stalls).await
    }

    async fn snapshot(
        &self,
        begin: Bytes,
        connection: &mut PeerConnection,
        from: u64,
    ) -> Result<Bytes, io::Error> {
        let (vote, length) = wire::decode_snapshot_begin(begin)?;
        let own = self.raft.with_raft_state(|state| *state.vote_ref());
        let own = own.await.map_err(io::Error::other)?;
        let announced = (from, vote, length);
        let (data, _turn) = match self.snapshots.take(connection, announced, own).await? {
            Taken::Whole(data, turn) => (data, turn),
            Taken::Refused(later) => {
                return Ok(wire::encode_vote_only(Kind::SnapshotResult, &later));
            }
        };
        let snapshot = receive_snapshot(data).await?;
        // Raft may purge the log before the state machine has installed the snapshot.
        let mut noted = None;
        if let Some(decoded) = &snapshot.snapshot.decoded {
            noted = Some(decoded.restored.position.id);
            self.boundary.note(decoded.restored.position.clone());
        }
        let response = self
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(io::Error::other)?;
        if let Some(id) = noted.filter(|_| response.vote != vote) {
            // A later vote came in between, and Raft did not take the snapshot.
            self.boundary.forget(&id);
        }
        Ok(wire::encode_vote_only(Kind::SnapshotResult, &response.vote))
    }
}

/// Whether the entries of a request can be written here; waits for it for a while. A node whose disk
/// is full lags behind then: to write regardless would end it.
async fn has_room(
    log: &CommitLog,
    limits: RoomLimits,
    request: &AppendEntriesRequest<TypeConfig>,
) -> bool {
    let payloads = request.entries.iter().map(|entry| match &entry.payload {
        EntryPayload::Normal(batch) => batch.payload.len() as u64,
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_BYTES_SMALL,
    });
    let payloads: u64 = payloads.sum();
    for _ in 0..ROOM_LOOKS_MAX {
        if payloads == 0 || room(log) >= limits.follower_room + payloads {
            return true;
        }
        sleep(ROOM_PAUSE).await;
    }
    false
}

/// Tells a leader that this node has a vote of a later term. If it leads in a later one itself by now,
/// it has to connect again.
async fn refuse_append(connection: PeerConnection, own: Vote) -> Result<(), io::Error> {
    let PeerConnection {
        mut reader,
        mut writer,
        ..
    } = connection;
    let Some(request) = next_append(&mut reader).await? else {
        return Ok(());
    };
    if request.vote.leader_id.term >= own.leader_id.term {
        return Err(io::Error::other("a leader of a later term than it said"));
    }
    let mut answer = BytesMut::new();
    wire::put_append_result(&mut answer, &Err(StreamAppendError::HigherVote(own)));
    writer.send(&answer).await
}

async fn next_append(
    reader: &mut PeerReader,
) -> Result<Option<AppendEntriesRequest<TypeConfig>>, io::Error> {
    match reader.next().await? {
        Some((Kind::Append, body)) => wire::decode_append(body).map(Some),
        Some(_) => Err(wire::malformed("append")),
        None => Ok(None),
    }
}
