//! Hellos, and frames of one connection.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt as _;
use prometheus::IntCounter;
use tokio::{
    io::{DuplexStream, duplex},
    time::sleep,
};

use super::*;
use crate::{
    cancellation::poll_times,
    raft::types::{LogId, Membership, PeerNode, StoredMembership},
};

fn local() -> Local {
    Local {
        cluster: "c".into(),
        group: "g".into(),
        id: 1,
        incarnation: "disk-1".into(),
        members: Arc::new(Members::new(IntCounter::new("r", "R.").unwrap())),
    }
}

/// A node whose membership names `incarnation` for node 2.
fn local_that_names(incarnation: &str) -> Local {
    let local = local();
    let node = PeerNode {
        address: "b:2".into(),
        incarnation: incarnation.into(),
    };
    let membership = Membership::new(vec![BTreeSet::from([2])], BTreeMap::from([(2, node)]));
    let id = Some(LogId::new_term_index(1, 1));
    let stored = StoredMembership::new(id, membership.unwrap());
    local.members.set(&Arc::new(stored));
    local
}

fn hello() -> Hello {
    Hello {
        version: WIRE_VERSION,
        cluster: "c".into(),
        group: "g".into(),
        from: 2,
        to: 1,
        channel: Channel::Append,
        incarnation: "disk-2".into(),
        expects: String::new(),
        address: "b:2".into(),
    }
}

#[test]
fn only_a_peer_of_the_same_group_that_means_this_node_is_let_in() {
    assert_eq!(refusal(&hello(), &local()), None);
    assert!(
        refusal(
            &Hello {
                version: 99,
                ..hello()
            },
            &local()
        )
        .is_some()
    );
    assert!(
        refusal(
            &Hello {
                cluster: "x".into(),
                ..hello()
            },
            &local()
        )
        .is_some()
    );
    assert!(
        refusal(
            &Hello {
                group: "x".into(),
                ..hello()
            },
            &local()
        )
        .is_some()
    );
    assert!(refusal(&Hello { to: 3, ..hello() }, &local()).is_some());
    assert!(refusal(&Hello { from: 1, ..hello() }, &local()).is_some());
}

#[test]
fn a_member_that_returned_with_another_disk_is_refused_from_both_sides() {
    let to_forward = Hello {
        channel: Channel::Forward,
        ..hello()
    };
    assert_eq!(refusal(&to_forward, &local_that_names("disk-2")), None);
    let reason = refusal(&to_forward, &local_that_names("disk-9")).unwrap();
    assert!(
        reason.starts_with("node 2 returned with another disk:"),
        "{reason}"
    );
    let expecting = |expects: &str| Hello {
        expects: expects.into(),
        ..hello()
    };
    let local = local();
    assert_eq!(refusal(&expecting("disk-1"), &local), None);
    let reason = refusal(&expecting("disk-0"), &local).unwrap();
    assert!(
        reason.starts_with("node 1 returned with another disk:"),
        "{reason}"
    );
    assert_eq!(*local.members.refused_by().borrow(), Some(reason));
}

#[test]
fn a_leader_whose_new_disk_is_not_known_here_yet_is_not_refused() {
    for channel in [Channel::Append, Channel::Heartbeat, Channel::Control] {
        let leads = Hello { channel, ..hello() };
        assert_eq!(refusal(&leads, &local_that_names("disk-9")), None);
    }
}

#[test]
fn an_answer_has_the_form_that_the_sender_of_the_hello_knows() {
    let old = Hello {
        incarnation: String::new(),
        ..hello()
    };
    let body = |hello: &Hello, refusal| answer_body(hello, &local(), refusal).unwrap();
    assert_eq!(body(&old, None), b"");
    assert_eq!(body(&old, Some("no")), b"no");
    for refusal in [None, Some("no")] {
        let answer = read_answer(&body(&hello(), refusal));
        assert_eq!(answer.incarnation, "disk-1");
        assert_eq!(answer.refusal, refusal.unwrap_or_default());
    }
    assert_eq!(read_answer(b""), HelloAnswer::default());
    assert_eq!(read_answer(b"no").refusal, "no");
}

fn introduced_reader() -> (PeerReader, DuplexStream) {
    let (here, there) = duplex(64 << 10);
    let connection = PeerConnection::new(Box::new(here));
    (connection.introduced(String::new()).reader, there)
}

#[tokio::test]
async fn a_strangers_first_frame_is_refused_by_its_head() {
    for (length, kind) in [
        (wire::PEER_FRAME_BYTES_MAX, Kind::Append),
        (wire::PEER_FRAME_BYTES_MAX, Kind::Hello),
        (64 << 10, Kind::Hello),
        (100, Kind::SnapshotBegin),
    ] {
        let (here, mut there) = duplex(64 << 10);
        let length = u32::try_from(length).unwrap();
        there.write_all(&length.to_be_bytes()).await.unwrap();
        there.write_all(&[kind as u8]).await.unwrap();
        let taken = accept(Box::new(here), &local()).now_or_never();
        assert!(taken.unwrap().is_err(), "{length} bytes of {kind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_trickles_its_hello_is_closed_in_time() {
    let (here, mut there) = duplex(64 << 10);
    let frame = wire::encode_raw(Kind::Hello, &[b' '; 4096]);
    let trickle = async {
        for byte in &frame {
            if there.write_all(&[*byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    let begin = Instant::now();
    let local = local();
    let (taken, ()) = tokio::join!(accept(Box::new(here), &local), trickle);
    assert!(taken.is_err());
    assert!(begin.elapsed() < HELLO_TIMEOUT + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_trickles_ends_the_connection_also_when_reads_are_cancelled() {
    let (mut reader, mut sender) = introduced_reader();
    let frame = wire::encode_raw(Kind::Forward, &vec![0; 1 << 20]);
    let trickle = async {
        for byte in &frame {
            sender.write_all(&[*byte]).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    };
    let begin = Instant::now();
    let read = async {
        loop {
            // Whoever reads has other things to do as well.
            if let Ok(read) = timeout(Duration::from_millis(250), reader.next()).await {
                return read;
            }
        }
    };
    tokio::select! {
        biased;
        read = read => assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut),
        () = trickle => panic!("a frame may take longer than a day"),
    }
    let waited = begin.elapsed();
    assert!(
        waited < FRAME_TIMEOUT + Duration::from_secs(1),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_silent_between_frames() {
    let (mut reader, mut sender) = introduced_reader();
    let frame = wire::encode_raw(Kind::Forward, b"a");
    for _ in 0..3 {
        assert!(
            timeout(Duration::from_secs(3600), reader.next())
                .await
                .is_err()
        );
        sender.write_all(&frame).await.unwrap();
        assert_eq!(reader.expect(Kind::Forward).await.unwrap(), &b"a"[..]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_was_cut_off_within_a_frame_writes_no_more() {
    let frame = wire::encode_raw(Kind::Forward, &vec![9; 200 << 10]);
    let mut cuts = 0;
    for polls in 1.. {
        let (here, there) = duplex(64 << 10);
        let mut writer = PeerConnection::new(Box::new(here)).writer;
        let mut reader = PeerConnection::new(Box::new(there))
            .introduced(String::new())
            .reader;
        let reading = tokio::spawn(async move {
            let mut whole = 0;
            while let Ok(Some((_, body))) = reader.next().await {
                assert_eq!(body.len(), 200 << 10);
                whole += 1;
            }
            whole
        });
        let sent = poll_times(writer.send(&frame), polls).await;
        let again = writer.send(&frame).await;
        assert_eq!(sent.is_some(), again.is_ok(), "after {polls} polls");
        drop(writer);
        let whole = reading.await.unwrap();
        if sent.is_some() {
            assert_eq!(whole, 2);
            break;
        }
        assert_eq!(whole, 0);
        cuts += 1;
    }
    assert!(cuts > 2, "{cuts}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_given_up() {
    let (here, _there) = duplex(64 << 10);
    let mut writer = PeerConnection::new(Box::new(here)).writer;
    let begin = Instant::now();
    assert!(writer.send(&vec![0; 1 << 20]).await.is_err());
    assert_eq!(begin.elapsed(), WRITE_TIMEOUT);
}

#[tokio::test]
async fn a_frame_gets_memory_as_its_bytes_arrive_not_as_it_announces() {
    let (mut reader, mut sender) = introduced_reader();
    let announced = u32::try_from(wire::PEER_FRAME_BYTES_MAX).unwrap();
    sender.write_all(&announced.to_be_bytes()).await.unwrap();
    sender.write_all(&[Kind::Append as u8; 100]).await.unwrap();
    // The frame never comes; what was sent is read and the reader waits for more.
    assert!(reader.next().now_or_never().is_none());
    assert_eq!(reader.buffer.len(), 104);
    assert!(reader.buffer.capacity() <= 2 * READ_AHEAD_BYTES_MAX);
}

#[tokio::test]
async fn unfinished_frames_of_all_connections_together_have_a_limit() {
    let intake = Arc::new(Intake::new(4 << 20));
    let begin_frame = async || {
        let (here, mut there) = duplex(16 << 20);
        let mut connection = PeerConnection::new(Box::new(here)).introduced(String::new());
        connection.count_in(&intake);
        let frame = wire::encode_raw(Kind::Forward, &vec![0; 3 << 20]);
        there.write_all(&frame[..2 << 20]).await.unwrap();
        let read = connection.reader.next().now_or_never();
        let rest = frame.slice(2 << 20..);
        (connection, there, rest, read)
    };
    let (mut first, mut sender, rest, read) = begin_frame().await;
    assert!(read.is_none());
    let (second, _open, _, read) = begin_frame().await;
    assert!(read.is_none());
    let (_third, _open, _, read) = begin_frame().await;
    assert!(read.unwrap().is_err(), "two hold all there is");
    drop((second, _third));
    sender.write_all(&rest).await.unwrap();
    assert!(first.reader.next().await.unwrap().is_some());
    // Both are forgotten: the one that is gone and the one that was finished.
    for _ in 0..3 {
        assert!(begin_frame().await.3.is_none());
    }
}

#[tokio::test]
async fn frames_larger_than_the_read_ahead_arrive_whole() {
    let (mut reader, mut sender) = introduced_reader();
    let bodies = [1 << 20, 0, (1 << 20) + 7, 100].map(|bytes: usize| {
        let body: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
        body
    });
    let sent = bodies.clone();
    let sending = tokio::spawn(async move {
        for body in sent {
            let frame = wire::encode_raw(Kind::SnapshotChunk, &body);
            sender.write_all(&frame).await.unwrap();
        }
        sender
    });
    for body in bodies {
        assert!(reader.expect(Kind::SnapshotChunk).await.unwrap() == body);
    }
    drop(sending.await.unwrap());
    assert!(reader.next().await.unwrap().is_none());
}
