//! Tests of frames over a stream.

use bytes::{BufMut, Bytes};
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

#[test]
fn an_announced_frame_reserves_no_more_than_the_read_ahead() {
    let mut buffer = BytesMut::new();
    assert_eq!(room_for(&buffer), READ_BUFFER_BYTES_MIN);
    buffer.put_u32(16 << 20);
    assert_eq!(room_for(&buffer), READ_AHEAD_BYTES_MAX);
}
