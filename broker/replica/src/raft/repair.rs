//! Ranges of the log between peers: gives them to a node whose own log is damaged there, and
//! fetches them for this one. Neither needs Raft: nodes that are all damaged mend one another.
//!
//! ```text
//!   range request: physical u64 | crc of the header before u32 | bytes of the entry to skip u32
//!   answer:        0 | bytes         1 = another log goes on there       2 = nothing whole there
//!                  3 = deleted: the log begins later       4 = behind: the log ends before
//! ```
//!
//! A peer that has deleted a range gives a checkpoint from behind it instead
//! (`repair_checkpoint.rs`).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raftmq_store::{Damage, Mender, RangeAnswer, RangeRequest, RangeSource, StoreError, Taken};
use tokio::{
    sync::oneshot,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use super::{
    machine::stored_membership,
    peer::{self, Local, PeerConnection},
    repair_checkpoint,
    wire::{self, Channel, Kind},
};
use crate::{
    checkpoint::{Checkpoints, MembershipRecord},
    config::RaftConfig,
    host,
    metrics::Metrics,
    net::{Listener, Net},
};

/// What asking all peers came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The range is complete, with bytes of these peers.
    Proven(Vec<u64>),
    /// Somebody has deleted it, and nobody has all of it.
    Purged {
        /// Whether nobody is left who may have it: each member said so, or that its log ends before.
        by_all: bool,
    },
    /// Nobody has all of it now.
    Incomplete,
}

/// What one peer gave.
enum Given {
    Taken(Taken),
    Purged,
    Behind,
}

/// What a node gives to peers.
#[derive(Clone, Debug)]
pub struct RepairSource {
    /// The files of its log.
    pub ranges: RangeSource,
    /// Its checkpoints.
    pub checkpoints: Arc<Checkpoints>,
}

/// Most bytes of one answer. Bounds the memory of both sides; an entry may be longer and then
/// comes in parts.
const RANGE_BYTES_MAX: usize = 1 << 20;
/// Longest wait for one answer. A healthy peer reads it from a file.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long peers that cannot be reached, or are damaged too, keep a start from beginning behind what
/// others have purged: a process that is restarted is back by then. Nothing but this node's copy of
/// what a peer's retention has deleted is lost by it.
const PURGED_WAIT: Duration = Duration::from_secs(10);
/// Pause before peers are asked again when none of them had the range; it doubles up to
/// [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(200);
/// See [`PAUSE`]. Also how often a range that nobody has is complained about.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Silence after which a connection for ranges is closed; peers close theirs after use.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections served at a time while Raft is not started: every peer repairs one range at a time.
const START_CONNECTIONS_MAX: usize = 32;

/// Why other channels are refused while the log is being mended.
const REFUSAL: &str = "its log is damaged and being mended from peers";

/// What peers are reached with.
#[derive(Clone, Debug)]
pub struct RepairPeers {
    pub(super) net: Arc<dyn Net>,
    pub(super) local: Local,
    configured: Vec<(u64, String)>,
    metrics: Arc<Metrics>,
}

impl RepairPeers {
    /// Peers of a node whose Raft is not started: those of the configuration, of the membership in the
    /// newest checkpoint, and who connects meanwhile. One that joined later has no leader to follow
    /// while this node is needed, so it asks for votes.
    ///
    /// # Errors
    /// When that membership cannot be read.
    pub fn before_raft(
        config: (&str, &RaftConfig),
        incarnation: &str,
        membership: &MembershipRecord,
        net: &Arc<dyn Net>,
        metrics: &Arc<Metrics>,
    ) -> Result<Self, io::Error> {
        let (cluster, raft) = config;
        let local = Local::new(cluster, raft, incarnation, metrics);
        let membership = stored_membership(membership)?;
        local.members.set(&Arc::new(membership));
        Ok(Self::new(local, raft, net, metrics))
    }

    pub(super) fn new(
        local: Local,
        raft: &RaftConfig,
        net: &Arc<dyn Net>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let peers = raft.peers.iter();
        Self {
            net: Arc::clone(net),
            local,
            configured: peers.map(|peer| (peer.id, peer.address.clone())).collect(),
            metrics: Arc::clone(metrics),
        }
    }

    /// The other nodes of the group; the membership knows their addresses best.
    pub(super) fn others(&self) -> Vec<(u64, String)> {
        let known = self.configured.iter().cloned();
        let mut all: BTreeMap<u64, String> = known.collect();
        all.extend(self.local.members.known());
        all.remove(&self.local.id);
        all.into_iter().collect()
    }

    /// Whether each other member is among `ids`, and who else has introduced itself. Nodes that only
    /// the configuration names do not count once the membership is known: they may have left.
    fn are_all_others(&self, ids: &BTreeSet<u64>) -> bool {
        let mut known = self.local.members.known();
        if self.local.members.addresses().is_empty() {
            known.extend(self.configured.iter().cloned());
        }
        known.remove(&self.local.id);
        known.keys().all(|id| ids.contains(id))
    }

    /// Whether nobody else could have the log.
    pub fn is_alone(&self) -> bool {
        self.others().is_empty()
    }

    /// Asks all peers, again and again, until the range is complete, or nobody has it because it was
    /// deleted. While peers that may have it cannot be reached, it does so for [`PURGED_WAIT`].
    ///
    /// # Errors
    /// When this node's own disk fails.
    pub async fn fetch(&self, mut mender: Mender) -> Result<(Mender, Asked), StoreError> {
        let (mut pause, mut round) = (PAUSE, 0);
        let mut purged_since = None;
        loop {
            let (asked, outcome) = self.ask_all(mender, round).await?;
            mender = asked;
            let is_enough = match outcome {
                Asked::Proven(_) | Asked::Purged { by_all: true } => true,
                Asked::Purged { by_all: false } => {
                    let since = purged_since.get_or_insert_with(Instant::now);
                    since.elapsed() >= PURGED_WAIT
                }
                Asked::Incomplete => false,
            };
            if is_enough {
                return Ok((mender, outcome));
            }
            complain(&mender);
            sleep(pause).await;
            (pause, round) = ((pause * 2).min(PAUSE_MAX), round + 1);
        }
    }

    /// Asks every peer, as long as one of them has more. Each round begins with another one: what one
    /// has may be the wrong thing.
    ///
    /// # Errors
    /// When this node's own disk fails.
    pub async fn ask_all(
        &self,
        mut mender: Mender,
        round: usize,
    ) -> Result<(Mender, Asked), StoreError> {
        let mut others = self.others();
        let first = round % others.len().max(1);
        others.rotate_left(first);
        mender.start_again();
        let (mut from, mut idle, mut wrong) = (Vec::new(), 0, 0);
        let (mut purged, mut without) = (BTreeSet::new(), BTreeSet::new());
        // Peers that are damaged too may have no more than a part each, in turn.
        for (id, address) in others.iter().cycle() {
            let before = mender.bytes();
            let (asked, ended) = self.ask(*id, address, mender).await?;
            mender = asked;
            match ended {
                Ok(Given::Taken(Taken::Proven)) => {
                    from.push(*id);
                    from.sort_unstable();
                    from.dedup();
                    return Ok((mender, Asked::Proven(from)));
                }
                Ok(Given::Purged) => {
                    purged.insert(*id);
                    without.insert(*id);
                }
                Ok(Given::Behind) => {
                    without.insert(*id);
                }
                Ok(Given::Taken(Taken::Wrong)) => {
                    tracing::debug!(peer = id, "the log of a peer goes on differently");
                    from.clear();
                    wrong += 1;
                }
                Ok(Given::Taken(Taken::More)) => {}
                Err(error) => tracing::debug!(peer = id, %error, "ask for a range of the log"),
            }
            if mender.bytes() > before {
                from.push(*id);
                from.sort_unstable();
                from.dedup();
                idle = 0;
            } else {
                idle += 1;
            }
            if idle == others.len() || wrong == others.len() {
                break;
            }
        }
        let outcome = match purged.len() {
            0 => Asked::Incomplete,
            _ => Asked::Purged {
                by_all: self.are_all_others(&without),
            },
        };
        Ok((mender, outcome))
    }

    /// Counts a range that is being mended, and tells of it.
    pub fn note_damage(&self, damage: &Damage) {
        self.metrics.log.damages_total.inc();
        tracing::error!(
            physical = damage.from_physical(),
            until = damage.to_physical(),
            reason = damage.reason(),
            "a range of the log is damaged; ask the peers for it"
        );
    }

    /// Counts an end that is given up, and tells of it.
    pub fn note_lost_end(&self, physical: u64, synced_physical: u64, reason: &str) {
        self.metrics.log.damages_total.inc();
        tracing::error!(
            physical,
            synced_physical,
            reason,
            "the end of the log is lost; cut it, and cast no vote until the leader has sent it again"
        );
    }

    /// Counts a damaged range that is purged, and tells of it.
    pub fn note_purged(&self, physical: u64, begin_physical: u64) {
        self.metrics.log.damages_total.inc();
        tracing::error!(
            physical,
            begin_physical,
            "peers have deleted a damaged range; begin the log at a checkpoint behind it"
        );
    }

    /// Counts a range that was mended with bytes of `from`, and tells of it.
    pub fn note_mended(&self, mender: &Mender, from: &[u64]) {
        self.metrics.log.repaired_ranges_total.inc();
        self.metrics.log.repaired_bytes_total.inc_by(mender.bytes());
        tracing::warn!(
            physical = mender.damage().from_physical(),
            bytes = mender.bytes(),
            peers = ?from,
            "mended a damaged range of the log"
        );
    }

    /// Takes from one peer what it has. The outcome: proven, wrong, or more is needed than it has.
    async fn ask(
        &self,
        id: u64,
        address: &str,
        mut mender: Mender,
    ) -> Result<(Mender, Result<Given, io::Error>), StoreError> {
        let connected = peer::connect(&self.net, &self.local, id, address, Channel::Repair).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => return Ok((mender, Err(error))),
        };
        loop {
            let bytes = match request(&mut connection, mender.wanted()).await {
                Ok(RangeAnswer::Bytes(bytes)) => bytes,
                Ok(RangeAnswer::Missing | RangeAnswer::Different) => {
                    return Ok((mender, Ok(Given::Taken(Taken::More))));
                }
                Ok(RangeAnswer::Purged) => return Ok((mender, Ok(Given::Purged))),
                Ok(RangeAnswer::Behind) => return Ok((mender, Ok(Given::Behind))),
                Err(error) => return Ok((mender, Err(error))),
            };
            let (back, taken) = blocking(move || {
                let taken = mender.take(&bytes)?;
                Ok((mender, taken))
            })
            .await?;
            mender = back;
            if taken != Taken::More {
                return Ok((mender, Ok(Given::Taken(taken))));
            }
        }
    }

    /// Serves ranges on the Raft port until it is told to stop; other channels are refused.
    pub fn serve(&self, listener: Box<dyn Listener>, source: RepairSource) -> StartServer {
        let (stop, stopped) = oneshot::channel();
        let local = self.local.clone();
        let task = tokio::spawn(serve_until(listener, local, source, stopped));
        StartServer { stop, task }
    }
}

/// Says what nobody has.
pub fn complain(mender: &Mender) {
    let damage = mender.damage();
    tracing::error!(
        physical = damage.from_physical(),
        until = damage.to_physical(),
        reason = damage.reason(),
        "no peer has a damaged range of the log; asking them again"
    );
}

/// Runs file work away from the runtime.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = host::blocking(work).await;
    done.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string())))
}

/// The Raft port of a node whose Raft is not started.
pub struct StartServer {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Box<dyn Listener>, io::Error>>,
}

impl std::fmt::Debug for StartServer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("StartServer")
            .finish_non_exhaustive()
    }
}

impl StartServer {
    /// Stops serving and gives the listener back.
    ///
    /// # Errors
    /// When it broke.
    pub async fn stop(self) -> Result<Box<dyn Listener>, io::Error> {
        // It has ended by itself when nobody receives that.
        let _ = self.stop.send(());
        self.task.await.map_err(io::Error::other)?
    }
}

async fn serve_until(
    mut listener: Box<dyn Listener>,
    local: Local,
    source: RepairSource,
    mut stopped: oneshot::Receiver<()>,
) -> Result<Box<dyn Listener>, io::Error> {
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = &mut stopped => return Ok(listener),
            accepted = listener.accept() => accepted?,
        };
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= START_CONNECTIONS_MAX {
            continue;
        }
        let (local, source) = (local.clone(), source.clone());
        tasks.spawn(async move {
            let refuse = |hello: &wire::Hello| {
                (hello.channel != Channel::Repair).then(|| REFUSAL.to_owned())
            };
            let served = match peer::accept_unless(accepted.stream, &local, refuse).await {
                Ok((mut connection, _)) => serve_ranges(&mut connection, &source).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::debug!(peer = %accepted.peer, %error, "peer connection ends");
            }
        });
    }
}

/// Answers requests for ranges and checkpoints until the peer closes the connection, or sends
/// something else, which is returned.
pub(super) async fn serve_ranges(
    connection: &mut PeerConnection,
    source: &RepairSource,
) -> Result<Option<(Kind, Bytes)>, io::Error> {
    while let Some((kind, body)) = timeout(IDLE_TIMEOUT, connection.reader.next()).await?? {
        let frame = match kind {
            Kind::Range => read_range(source.ranges.clone(), decode_request(body)?).await,
            Kind::Checkpoint => {
                let wanted = repair_checkpoint::decode_request(body)?;
                let checkpoints = Arc::clone(&source.checkpoints);
                repair_checkpoint::read_part(checkpoints, wanted).await
            }
            _ => return Ok(Some((kind, body))),
        };
        timeout(ANSWER_TIMEOUT, connection.writer.send(&frame)).await??;
    }
    Ok(None)
}

async fn read_range(source: RangeSource, wanted: RangeRequest) -> Bytes {
    let answer = blocking(move || source.read(wanted, RANGE_BYTES_MAX)).await;
    let answer = answer.unwrap_or_else(|error| {
        tracing::warn!(%error, "read a range of the log for a peer");
        RangeAnswer::Missing
    });
    encode_answer(&answer)
}

async fn request(
    connection: &mut PeerConnection,
    wanted: RangeRequest,
) -> Result<RangeAnswer, io::Error> {
    let frame = encode_request(wanted);
    let answer = connection.call(&frame, Kind::RangeResult);
    decode_answer(timeout(ANSWER_TIMEOUT, answer).await??)
}

pub(super) fn encode_request(wanted: RangeRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    wire::put_frame(&mut out, Kind::Range, |out| {
        out.put_u64_le(wanted.physical);
        out.put_u32_le(wanted.previous_crc);
        out.put_u32_le(wanted.skip);
    });
    out.freeze()
}

pub(super) fn decode_request(mut body: Bytes) -> Result<RangeRequest, io::Error> {
    let body = &mut body;
    let mut decode = || {
        Some(RangeRequest {
            physical: body.try_get_u64_le().ok()?,
            previous_crc: body.try_get_u32_le().ok()?,
            skip: body.try_get_u32_le().ok()?,
        })
    };
    decode().ok_or_else(|| wire::malformed("range"))
}

pub(super) fn encode_answer(answer: &RangeAnswer) -> Bytes {
    let (status, bytes): (u8, &[u8]) = match answer {
        RangeAnswer::Bytes(bytes) => (0, bytes),
        RangeAnswer::Different => (1, &[]),
        RangeAnswer::Missing => (2, &[]),
        RangeAnswer::Purged => (3, &[]),
        RangeAnswer::Behind => (4, &[]),
    };
    let mut out = BytesMut::with_capacity(8 + bytes.len());
    wire::put_frame(&mut out, Kind::RangeResult, |out| {
        out.put_u8(status);
        out.extend_from_slice(bytes);
    });
    out.freeze()
}

pub(super) fn decode_answer(mut body: Bytes) -> Result<RangeAnswer, io::Error> {
    match body.try_get_u8() {
        Ok(0) if !body.is_empty() && body.len() <= RANGE_BYTES_MAX => Ok(RangeAnswer::Bytes(body)),
        Ok(1) => Ok(RangeAnswer::Different),
        Ok(2) => Ok(RangeAnswer::Missing),
        Ok(3) => Ok(RangeAnswer::Purged),
        Ok(4) => Ok(RangeAnswer::Behind),
        _ => Err(wire::malformed("range result")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body_of(frame: &[u8], kind: Kind) -> Bytes {
        let mut buffer = BytesMut::from(frame);
        let (found, body) = wire::take_frame(&mut buffer).unwrap().unwrap();
        assert_eq!(found, kind);
        body
    }

    #[test]
    fn requests_and_answers_survive_the_wire() {
        let wanted = RangeRequest {
            physical: 1 << 40,
            previous_crc: 7,
            skip: 9,
        };
        let body = body_of(&encode_request(wanted), Kind::Range);
        assert_eq!(decode_request(body.clone()).unwrap(), wanted);
        assert!(decode_request(body.slice(..15)).is_err());
        let largest = Bytes::from(vec![3; RANGE_BYTES_MAX]);
        for answer in [
            RangeAnswer::Bytes(largest),
            RangeAnswer::Different,
            RangeAnswer::Missing,
            RangeAnswer::Purged,
            RangeAnswer::Behind,
        ] {
            let body = body_of(&encode_answer(&answer), Kind::RangeResult);
            assert_eq!(decode_answer(body).unwrap(), answer);
        }
    }

    #[test]
    fn an_answer_without_bytes_or_with_too_many_is_refused() {
        let oversized = RangeAnswer::Bytes(vec![3; RANGE_BYTES_MAX + 1].into());
        let body = body_of(&encode_answer(&oversized), Kind::RangeResult);
        assert!(decode_answer(body).is_err());
        for bytes in [&b""[..], b"\x00", b"\x05"] {
            assert!(decode_answer(Bytes::from_static(bytes)).is_err());
        }
    }
}
