//! Tests of frames over a stream.

use bytes::BufMut;
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
    let sizes = [
        0,
        1,
        WRITE_COPY_BYTES_MAX,
        WRITE_COPY_BYTES_MAX + 1,
        WRITE_BATCH_BYTES,
        3 << 20,
    ];
    // A stream of 1000 bytes cuts frames at every place.
    let (near, far) = ends(1000);
    let (_reader, writer, task) = open(near, LONG);
    let (mut reader, _writer, _task) = open(far, LONG);
    let sender = tokio::spawn(async move {
        for (opaque, size) in (0..).zip(sizes) {
            writer.send(request(opaque, body(size))).await.unwrap();
        }
    });
    for (opaque, size) in (0..).zip(sizes) {
        let command = reader.next().await.unwrap().unwrap();
        assert_eq!((command.opaque, command.body), (opaque, body(size)));
    }
    sender.await.unwrap();
    assert!(reader.next().await.unwrap().is_none());
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_an_error() {
    let (mut near, far) = ends(1000);
    let mut frame = BytesMut::new();
    frame::encode(&request(1, body(10)), &mut frame);
    near.write_all(&frame[..frame.len() - 1]).await.unwrap();
    drop(near);
    let (mut reader, _writer, _task) = open(far, LONG);
    assert!(matches!(reader.next().await, Err(ReadError::Io(_))));
}

#[tokio::test]
async fn bytes_that_are_no_frame_are_an_error() {
    let (mut near, far) = ends(1000);
    near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let (mut reader, _writer, _task) = open(far, LONG);
    assert!(matches!(reader.next().await, Err(ReadError::Frame(_))));
}

#[tokio::test]
async fn a_silent_connection_is_idle() {
    let (_near, far) = ends(1000);
    let (mut reader, _writer, _task) = open(far, Duration::from_millis(1));
    assert!(matches!(reader.next().await, Err(ReadError::Idle(_))));
}

#[tokio::test]
async fn a_slow_reader_bounds_the_bytes_that_wait_and_nothing_is_lost() {
    let (near, far) = ends(1000);
    let (_reader, writer, _task) = open(near, LONG);
    let one = WRITE_QUEUE_BYTES_MAX / 4;
    // Four bodies with their headers exceed the limit.
    for opaque in 0..3 {
        writer.send(request(opaque, body(one))).await.unwrap();
    }
    let mut fourth = Box::pin(writer.send(request(3, body(one))));
    assert!(futures::poll!(&mut fourth).is_pending());
    let (mut reader, _writer, _task) = open(far, LONG);
    for opaque in 0..3 {
        assert_eq!(reader.next().await.unwrap().unwrap().opaque, opaque);
    }
    fourth.await.unwrap();
    assert_eq!(reader.next().await.unwrap().unwrap().opaque, 3);
}

#[tokio::test]
async fn senders_learn_that_the_connection_is_gone() {
    let (near, far) = ends(1000);
    let (_reader, writer, task) = open(near, LONG);
    drop(far);
    writer.send(request(1, Bytes::new())).await.unwrap();
    assert!(task.await.unwrap().is_err());
    writer.closed().await;
    assert_eq!(writer.send(request(2, Bytes::new())).await, Err(Closed));
}

#[tokio::test]
async fn a_client_takes_the_response_to_its_own_request() {
    let net = crate::net::memory::MemoryNet::default();
    let address = "127.0.0.1:1".parse().unwrap();
    let mut listener = net.bind(address).await.unwrap();
    let server = tokio::spawn(async move {
        let accepted = listener.accept().await.unwrap();
        let (mut reader, writer, _task) = open(accepted.stream, LONG);
        let asked = reader.next().await.unwrap().unwrap();
        // A push, and the response to another request.
        writer
            .send(request(asked.opaque, Bytes::new()))
            .await
            .unwrap();
        let mut other = RemotingCommand::response_to(&asked, ResponseCode::SYSTEM_ERROR);
        other.opaque += 1;
        writer.send(other).await.unwrap();
        writer
            .send(RemotingCommand::response_to(&asked, ResponseCode::SUCCESS))
            .await
            .unwrap();
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
