//! Tests of frames over a stream.

use bytes::Bytes;
use raftmq_remoting::{RequestCode, ResponseCode};

use super::*;

const LONG: Duration = Duration::from_secs(60);

fn request(opaque: i32, body: Bytes) -> RemotingCommand {
    let mut command =
        RemotingCommand::request(RequestCode::GET_ROUTEINFO_BY_TOPIC).with_ext("topic", "T");
    command.opaque = opaque;
    command.with_body(body)
}

fn body(length: usize) -> Bytes {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

/// Two ends of one stream in memory that holds `bytes`.
fn ends(bytes: usize) -> (Stream, Stream) {
    let (near, far) = tokio::io::duplex(bytes);
    (Box::new(near), Box::new(far))
}

#[tokio::test]
async fn frames_of_every_size_arrive_in_order() {
    let sizes = [0, 1, 4096, 4097, WRITE_BUFFER_BYTES_KEPT, 3 << 20];
    // A stream of 1000 bytes cuts frames at every place.
    let (near, far) = ends(1000);
    let (_reader, mut writer) = open(near, LONG);
    let (mut reader, _writer) = open(far, LONG);
    let sender = tokio::spawn(async move {
        for (opaque, size) in (0..).zip(sizes) {
            writer.send(&request(opaque, body(size))).await.unwrap();
        }
        writer.finish().await.unwrap();
    });
    for (opaque, size) in (0..).zip(sizes) {
        let command = reader.next().await.unwrap().unwrap();
        assert_eq!((command.opaque, command.body), (opaque, body(size)));
    }
    sender.await.unwrap();
    assert!(reader.next().await.unwrap().is_none());
}

#[tokio::test]
async fn a_write_empties_its_buffer_and_keeps_its_memory_unless_it_is_large() {
    let (near, far) = ends(8 << 20);
    let (_reader, mut writer) = open(near, LONG);
    let (mut reader, _writer) = open(far, LONG);
    let mut buffer = BytesMut::new();
    frame::encode(&request(1, body(100)), &mut buffer);
    frame::encode(&request(2, body(100)), &mut buffer);
    writer.write(&mut buffer).await.unwrap();
    assert!(buffer.is_empty() && buffer.capacity() > 0);
    frame::encode(&request(3, body(1 << 20)), &mut buffer);
    writer.write(&mut buffer).await.unwrap();
    assert_eq!(buffer.capacity(), 0);
    for opaque in 1..=3 {
        assert_eq!(reader.next().await.unwrap().unwrap().opaque, opaque);
    }
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let (mut near, far) = ends(1000);
    let mut frame = BytesMut::new();
    frame::encode(&request(1, body(10)), &mut frame);
    near.write_all(&frame[..frame.len() - 1]).await.unwrap();
    drop(near);
    let (mut reader, _writer) = open(far, LONG);
    assert!(matches!(reader.next().await, Err(ConnectionError::Io(_))));
}

#[tokio::test]
async fn bytes_that_are_no_frame_are_an_error() {
    let (mut near, far) = ends(1000);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (mut reader, _writer) = open(far, LONG);
    assert!(matches!(
        reader.next().await,
        Err(ConnectionError::Frame(_))
    ));
}

#[tokio::test]
async fn a_silent_connection_is_idle() {
    let (_near, far) = ends(1000);
    let (mut reader, _writer) = open(far, Duration::from_millis(1));
    assert!(matches!(reader.next().await, Err(ConnectionError::Idle(_))));
}

#[tokio::test]
async fn a_peer_that_takes_nothing_is_an_error() {
    let (near, _far) = ends(1000);
    let (_reader, mut writer) = open(near, LONG);
    writer.stall_timeout = Duration::from_millis(1);
    let error = writer.send(&request(1, body(2000))).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_peer_that_is_gone_is_an_error() {
    let (near, far) = ends(1000);
    let (_reader, mut writer) = open(near, LONG);
    drop(far);
    assert!(writer.send(&request(1, Bytes::new())).await.is_err());
}

#[tokio::test]
async fn a_client_takes_the_response_to_its_own_request() {
    let net = crate::net::memory::MemoryNet::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let mut listener = net.bind(address).await.unwrap();
    let server = tokio::spawn(async move {
        let accepted = listener.accept().await.unwrap();
        let (mut reader, mut writer) = open(accepted.stream, LONG);
        let asked = reader.next().await.unwrap().unwrap();
        // A push, and the response to another request.
        let push = request(asked.opaque, Bytes::new());
        writer.send(&push).await.unwrap();
        let mut other = RemotingCommand::response_to(&asked, ResponseCode::SYSTEM_ERROR);
        other.opaque += 1;
        writer.send(&other).await.unwrap();
        let own = RemotingCommand::response_to(&asked, ResponseCode::SUCCESS);
        writer.send(&own).await.unwrap();
        assert!(reader.next().await.unwrap().is_none());
    });
    let mut client = FrameClient::connect(&net, "127.0.0.1:1").await.unwrap();
    let response = client.call(request(77, Bytes::new()), LONG).await.unwrap();
    assert_eq!(ResponseCode(response.code), ResponseCode::SUCCESS);
    drop(client);
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_trickles_in_has_a_deadline() {
    let (mut near, far) = ends(1000);
    let (mut reader, _writer) = open(far, Duration::from_secs(120));
    // Whole frames, far apart: each has its own time.
    for opaque in 0..3 {
        let mut frame = BytesMut::new();
        frame::encode(&request(opaque, body(10)), &mut frame);
        near.write_all(&frame).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap().opaque, opaque);
        tokio::time::sleep(FRAME_TIMEOUT).await;
    }
    let begin = Instant::now();
    let trickle = async {
        near.write_all(&(1_u32 << 20).to_be_bytes()).await.unwrap();
        while near.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let read = async {
        let read = reader.next().await;
        drop(reader);
        read
    };
    let (read, ()) = tokio::join!(read, async {
        let _ = tokio::time::timeout(2 * FRAME_TIMEOUT, trickle).await;
    });
    assert!(matches!(read, Err(ConnectionError::Slow(_))), "{read:?}");
    assert!(begin.elapsed() >= FRAME_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_stops_coming_is_not_waited_for_as_long_as_a_silent_connection() {
    let (mut near, far) = ends(1000);
    let (mut reader, _writer) = open(far, Duration::from_secs(120));
    let begin = Instant::now();
    near.write_all(&[0, 0]).await.unwrap();
    assert!(matches!(reader.next().await, Err(ConnectionError::Slow(_))));
    assert!(begin.elapsed() < FRAME_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_a_byte_now_and_then_is_an_error() {
    let (near, mut far) = ends(1000);
    let (_reader, mut writer) = open(near, LONG);
    let begin = Instant::now();
    let take = async {
        loop {
            let mut byte = [0];
            if far.read_exact(&mut byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
    };
    let sent = request(1, body(100_000));
    tokio::select! {
        biased;
        sent = writer.send(&sent) => {
            assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        () = take => panic!("the writer ends first"),
    }
    assert!(begin.elapsed() < 2 * WRITE_STALL_TIMEOUT);
}

#[tokio::test]
async fn a_large_frame_takes_its_memory_with_it() {
    let (near, far) = ends(1 << 20);
    let (_reader, mut writer) = open(near, LONG);
    let (mut reader, _writer) = open(far, LONG);
    for (opaque, size) in [(1, 200 << 10), (2, 10)] {
        writer.send(&request(opaque, body(size))).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap().opaque, opaque);
    }
    let mut next = Box::pin(reader.next());
    assert!(futures::poll!(&mut next).is_pending());
    drop(next);
    assert!(reader.buffer.capacity() <= READ_BUFFER_BYTES_MIN);
}

#[tokio::test]
async fn a_connection_that_is_sent_little_holds_little() {
    let (near, far) = ends(1 << 20);
    let (_reader, mut writer) = open(near, LONG);
    let (mut reader, _writer) = open(far, LONG);
    for (size, least, most) in [
        (100, 1, READ_BUFFER_BYTES_FIRST),
        // Two of them: the end of a frame may be in front of the room for the next.
        (
            8 << 10,
            READ_BUFFER_BYTES_FIRST + 1,
            2 * READ_BUFFER_BYTES_MIN,
        ),
    ] {
        for opaque in 0..100 {
            writer.send(&request(opaque, body(size))).await.unwrap();
            assert_eq!(reader.next().await.unwrap().unwrap().opaque, opaque);
        }
        let mut next = Box::pin(reader.next());
        assert!(futures::poll!(&mut next).is_pending());
        drop(next);
        let held = reader.buffer.capacity();
        assert!((least..=most).contains(&held), "{held}");
    }
}

#[test]
fn refused_connections_are_logged_now_and_then() {
    let begin = Instant::now();
    let mut refusals = Refusals::default();
    let lines: Vec<u64> = (0..20_000_u64)
        .filter_map(|at| refusals.count(begin + Duration::from_millis(at)))
        .collect();
    // The first one at once, then what came in the meantime.
    assert_eq!(lines, [1, 10_000]);
    assert_eq!(refusals.not_logged, 9_999);
}
