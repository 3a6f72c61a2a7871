//! Append streams over a network in memory whose pipes hold 64 KiB, in paused time.

use bytes::BytesMut;
use tokio::time::{Instant, sleep};

use super::{super::append_stream::APPEND_ANSWER_TIMEOUT, *};
use crate::{
    cancellation::poll_times,
    net::memory::MemoryNet,
    raft::types::{Batch, Entry, LogId},
};

const FOLLOWER: &str = "127.0.0.1:7001";

fn client(net: &MemoryNet) -> PeerClient {
    let transport = Transport::on(net.clone(), Local::of_test(2));
    let node = PeerNode {
        address: FOLLOWER.into(),
        ..PeerNode::default()
    };
    transport.client(1, &node, Channel::Append)
}

fn request(index: u64, bytes: usize) -> AppendEntriesRequest<TypeConfig> {
    let batch = Batch {
        payload: vec![1; bytes].into(),
        count: 1,
        physical_offset: 0,
    };
    AppendEntriesRequest {
        vote: Vote::new_committed(1, 2),
        prev_log_id: None,
        entries: vec![Entry {
            log_id: LogId::new_term_index(1, index),
            payload: openraft::EntryPayload::Normal(batch),
        }],
        leader_commit: None,
    }
}

/// A follower that answers each request at once, and reads no other before that is written; `pause`
/// is made before each answer.
async fn follow(net: &MemoryNet, pause: Duration) {
    let mut listener = net.bind(FOLLOWER.parse().unwrap()).await.unwrap();
    tokio::spawn(async move {
        while let Ok(accepted) = listener.accept().await {
            tokio::spawn(async move {
                let (mut connection, _) = peer::accept(accepted.stream, &Local::of_test(1)).await?;
                let mut out = BytesMut::new();
                while let Some((_, body)) = connection.reader.next().await? {
                    let request = wire::decode_append(body)?;
                    let last = request.entries.last().map(|entry| entry.log_id);
                    sleep(pause).await;
                    wire::put_append_result(&mut out, &Ok(last));
                    connection.writer.send(&out).await?;
                    out.clear();
                }
                Ok::<(), io::Error>(())
            });
        }
    });
}

async fn indexes(
    client: &mut PeerClient,
    requests: Vec<AppendEntriesRequest<TypeConfig>>,
) -> Vec<u64> {
    let option = RPCOption::new(Duration::from_secs(1));
    let answers = client.stream_append(stream::iter(requests), option);
    let answers: Vec<_> = answers.await.unwrap().collect().await;
    let index = |answer: Result<StreamAppendResult<TypeConfig>, _>| {
        answer.ok()?.ok()?.map(|id: LogId| id.index())
    };
    answers.into_iter().filter_map(index).collect()
}

#[tokio::test(start_paused = true)]
async fn answers_are_read_while_requests_are_written() {
    let net = MemoryNet::default();
    follow(&net, Duration::ZERO).await;
    let mut client = client(&net);
    // More answers than a pipe holds, to requests that are all there at once.
    let requests: Vec<_> = (0..20_000).map(|index| request(index, 100)).collect();
    assert!(indexes(&mut client, requests).await == (0..20_000).collect::<Vec<_>>());
    // The connection is kept for the next stream.
    assert!(client.stream.lock().unwrap().is_some());
    let requests = vec![request(7, 2 << 20), request(8, 10)];
    assert_eq!(indexes(&mut client, requests).await, [7, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_does_not_answer_ends_the_stream_in_time() {
    let net = MemoryNet::default();
    follow(&net, Duration::from_secs(3600)).await;
    let mut client = client(&net);
    let begin = Instant::now();
    assert_eq!(indexes(&mut client, vec![request(7, 10)]).await, [0; 0]);
    assert_eq!(begin.elapsed(), APPEND_ANSWER_TIMEOUT);
    assert!(client.stream.lock().unwrap().is_none());
    // One that does not even read is given up in the write.
    let requests = vec![request(7, 10), request(8, 1 << 20)];
    let begin = Instant::now();
    assert_eq!(indexes(&mut client, requests).await, [0; 0]);
    assert!(begin.elapsed() <= APPEND_ANSWER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_at_any_await_leaves_no_half_frame_and_no_stray_answer() {
    let net = MemoryNet::default();
    follow(&net, Duration::from_millis(1)).await;
    let mut client = client(&net);
    for polls in 1.. {
        let requests = vec![request(1, 10), request(2, 300 << 10), request(3, 10)];
        let answered = poll_times(indexes(&mut client, requests), polls).await;
        if let Some(answers) = answered {
            assert_eq!(answers, [1, 2, 3]);
            assert!(polls > 2, "{polls}");
            break;
        }
        assert_eq!(indexes(&mut client, vec![request(9, 10)]).await, [9]);
    }
}
