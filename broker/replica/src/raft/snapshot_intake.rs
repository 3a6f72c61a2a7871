//! Takes snapshots from leaders: first looks at the vote, then gathers the pieces in memory, of one
//! snapshot at a time.
//!
//! ```text
//!   leader:  begin (vote, length)             pieces ...
//!   here:                          ready, or                  result (vote)
//!                                  result (a later vote)
//! ```

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    sync::{Mutex, MutexGuard, watch},
    time::timeout,
};

use super::{
    peer::{PeerConnection, PeerReader},
    types::Vote,
    wire::{self, Kind},
};

/// Largest snapshot: a checkpoint of a million queues is about 100 MB. Unit: bytes. This is also what
/// all snapshots that are on their way here may hold of memory.
pub(super) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// Longest wait for the next piece, as long as the leader takes to write one.
const PIECE_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for a snapshot that is being installed, which takes a few seconds of disk work; the
/// leader waits longer for the answer.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);

/// Lets one snapshot in at a time. A later one replaces one that is still on its way: its leader has
/// lost the connection of the earlier, or has replaced its leader.
#[derive(Debug, Default)]
pub(crate) struct SnapshotIntake {
    turn: Mutex<()>,
    /// Number of the snapshot that began last.
    newest: watch::Sender<u64>,
}

/// What became of a snapshot that a leader announced.
pub(super) enum Taken<'a> {
    /// This node has a later vote; no piece was asked for.
    Refused(Vote),
    /// All of it, and the right to install it.
    Whole(Bytes, Turn<'a>),
}

/// The right to take in a snapshot; the next gets it when this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    number: u64,
    newest: watch::Receiver<u64>,
    _guard: MutexGuard<'a, ()>,
}

impl SnapshotIntake {
    /// Takes in the snapshot that node `from` announced with `vote`; `own` is the vote of this node.
    ///
    /// # Errors
    /// When the announcement makes no sense, the pieces do not come in time, or another snapshot
    /// begins meanwhile: then the connection must be closed.
    pub(super) async fn take(
        &self,
        connection: &mut PeerConnection,
        (from, vote, length): (u64, Vote, u64),
        own: Vote,
    ) -> Result<Taken<'_>, io::Error> {
        // As Raft compares votes.
        if vote.partial_cmp(&own).is_none_or(std::cmp::Ordering::is_lt) {
            return Ok(Taken::Refused(own));
        }
        if !vote.committed || vote.leader_id.voted_for != from {
            return Err(wire::malformed("somebody else's snapshot"));
        }
        if length > SNAPSHOT_BYTES_MAX {
            return Err(wire::malformed("oversized snapshot"));
        }
        let mut turn = self.turn().await?;
        let ready = wire::encode_raw(Kind::SnapshotReady, &[]);
        connection.writer.send(&ready).await?;
        let data = tokio::select! {
            biased;
            () = replaced(&mut turn) => return Err(io::Error::other("a later snapshot comes")),
            data = gather(&mut connection.reader, length) => data?,
        };
        Ok(Taken::Whole(data, turn))
    }

    async fn turn(&self) -> Result<Turn<'_>, io::Error> {
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        let guard = timeout(TURN_TIMEOUT, self.turn.lock()).await?;
        Ok(Turn {
            number,
            newest: self.newest.subscribe(),
            _guard: guard,
        })
    }
}

/// Ready when a later snapshot waits for its turn.
async fn replaced(turn: &mut Turn<'_>) {
    let number = turn.number;
    if turn
        .newest
        .wait_for(|newest| *newest > number)
        .await
        .is_err()
    {
        // The server is gone, and this connection with it.
        std::future::pending::<()>().await;
    }
}

/// The pieces put together. Memory grows as they come.
async fn gather(reader: &mut PeerReader, length: u64) -> Result<Bytes, io::Error> {
    let mut data = BytesMut::new();
    while (data.len() as u64) < length {
        let piece = timeout(PIECE_TIMEOUT, reader.expect(Kind::SnapshotChunk)).await??;
        if (data.len() + piece.len()) as u64 > length || piece.is_empty() {
            return Err(wire::malformed("snapshot"));
        }
        data.extend_from_slice(&piece);
    }
    Ok(data.freeze())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft::{
        network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
        vote::leader_id_std::LeaderId,
    };
    use tokio::{task::JoinHandle, time::Instant};

    use super::*;
    use crate::{
        cancellation::poll_times,
        net::{Net, memory::MemoryNet},
        raft::{
            peer::{self, Local},
            transport::Transport,
            types::{PeerNode, Snapshot, SnapshotMeta},
        },
    };

    const HERE: &str = "127.0.0.1:7001";

    fn vote(term: u64, voted_for: u64) -> Vote {
        Vote {
            leader_id: LeaderId { term, voted_for },
            committed: true,
        }
    }

    /// A follower with the vote of term 5 that takes snapshots on any number of connections, and what
    /// it got.
    async fn follow(net: &MemoryNet) -> JoinHandle<Vec<usize>> {
        let mut listener = net.bind(HERE.parse().unwrap()).await.unwrap();
        tokio::spawn(async move {
            let intake = Arc::new(SnapshotIntake::default());
            let mut connections = tokio::task::JoinSet::new();
            let idle = Duration::from_secs(600);
            while let Ok(Ok(accepted)) = timeout(idle, listener.accept()).await {
                let intake = Arc::clone(&intake);
                connections.spawn(async move {
                    let (mut connection, hello) = peer::accept(accepted.stream, &Local::of_test(1))
                        .await
                        .ok()?;
                    let body = connection.reader.expect(Kind::SnapshotBegin).await.ok()?;
                    let (vote, length) = wire::decode_snapshot_begin(body).ok()?;
                    let begin = (hello.from, vote, length);
                    let own = self::vote(5, 2);
                    let taken = intake.take(&mut connection, begin, own).await.ok()?;
                    let (vote, got) = match taken {
                        Taken::Refused(vote) => (vote, None),
                        Taken::Whole(data, _turn) => (vote, Some(data.len())),
                    };
                    let answer = wire::encode_vote_only(Kind::SnapshotResult, &vote);
                    connection.writer.send(&answer).await.ok()?;
                    got
                });
            }
            connections.join_all().await.into_iter().flatten().collect()
        })
    }

    async fn send(net: &MemoryNet, vote: Vote, bytes: usize) -> Result<Vote, String> {
        let mut transport = Transport::on(net.clone(), Local::of_test(vote.leader_id.voted_for));
        let node = PeerNode {
            address: HERE.into(),
            ..PeerNode::default()
        };
        let mut client = transport.new_snapshot_client(1, &node).await;
        let snapshot = Snapshot {
            meta: SnapshotMeta::default(),
            snapshot: Bytes::from(vec![3; bytes]).into(),
        };
        let option = RPCOption::new(Duration::from_secs(1));
        let sent = client.full_snapshot(vote, snapshot, std::future::pending(), option);
        let sent = sent.await.map_err(|error| error.to_string())?;
        Ok(sent.vote)
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_of_the_past_sends_no_piece() {
        let net = MemoryNet::default();
        let follower = follow(&net).await;
        let begin = Instant::now();
        assert_eq!(send(&net, vote(4, 3), 900 << 20).await, Ok(vote(5, 2)));
        // Of the same term, but not the one this node knows.
        assert_eq!(send(&net, vote(5, 3), 10).await, Ok(vote(5, 2)));
        assert_eq!(begin.elapsed(), Duration::ZERO);
        assert_eq!(send(&net, vote(5, 2), 3 << 20).await, Ok(vote(5, 2)));
        assert_eq!(send(&net, vote(6, 3), 0).await, Ok(vote(6, 3)));
        assert_eq!(follower.await.unwrap(), [3 << 20, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_snapshot_replaces_one_that_is_still_on_its_way() {
        let net = MemoryNet::default();
        let follower = follow(&net).await;
        let stalled = async {
            let transport = Transport::on(net.clone(), Local::of_test(2));
            let Transport { net, local, .. } = &transport;
            let channel = wire::Channel::Control;
            let mut connection = peer::connect(net, local, 1, HERE, channel).await.unwrap();
            let begin = wire::encode_snapshot_begin(&vote(5, 2), 1 << 20);
            connection.call(&begin, Kind::SnapshotReady).await.unwrap();
            let piece = wire::encode_raw(Kind::SnapshotChunk, &[1; 1000]);
            connection.writer.send(&piece).await.unwrap();
            connection
        };
        let mut stalled = stalled.await;
        let begin = Instant::now();
        assert_eq!(send(&net, vote(5, 2), 2 << 20).await, Ok(vote(5, 2)));
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert!(matches!(stalled.reader.next().await, Ok(None) | Err(_)));
        assert_eq!(follower.await.unwrap(), [2 << 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_is_dropped_at_any_await_does_not_keep_the_next_out() {
        let net = MemoryNet::default();
        let follower = follow(&net).await;
        let mut whole = 0;
        for polls in 1.. {
            let sent = poll_times(send(&net, vote(5, 2), 200 << 10), polls).await;
            let begin = Instant::now();
            assert_eq!(send(&net, vote(5, 2), 100).await, Ok(vote(5, 2)));
            assert!(begin.elapsed() < Duration::from_secs(1), "poll {polls}");
            if sent.is_some() {
                whole = polls;
                break;
            }
        }
        assert!(whole > 5, "{whole}");
        let got = follower.await.unwrap();
        assert!(got.iter().filter(|bytes| **bytes == 100).count() == whole);
    }
}
