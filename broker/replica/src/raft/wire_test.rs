//! Frames.

use super::*;

fn vote() -> Vote {
    Vote {
        leader_id: leader_id_std::LeaderId {
            term: 9,
            voted_for: 2,
        },
        committed: true,
    }
}

fn body_of(frame: &[u8], kind: Kind) -> Bytes {
    let mut buffer = BytesMut::from(frame);
    let (found, body) = take_frame(&mut buffer).unwrap().unwrap();
    assert_eq!(found, kind);
    assert!(buffer.is_empty());
    body
}

#[test]
fn an_append_request_survives_the_wire() {
    let batch = Batch {
        payload: Bytes::from_static(b"abc"),
        count: 2,
        physical_offset: 0,
    };
    let request = AppendEntriesRequest::<TypeConfig> {
        vote: vote(),
        prev_log_id: Some(LogId::new_term_index(8, 41)),
        leader_commit: None,
        entries: vec![
            Entry {
                log_id: LogId::new_term_index(9, 42),
                payload: EntryPayload::Blank,
            },
            Entry {
                log_id: LogId::new_term_index(9, 43),
                payload: EntryPayload::Normal(batch),
            },
        ],
    };
    let mut frame = BytesMut::new();
    put_append(&mut frame, &request).unwrap();
    let body = body_of(&frame, Kind::Append);
    let decoded = decode_append(body.clone()).unwrap();
    assert_eq!(decoded.entries, request.entries);
    assert_eq!(decoded.prev_log_id, request.prev_log_id);
    for cut in 0..body.len() {
        assert!(decode_append(body.slice(..cut)).is_err(), "cut at {cut}");
    }
}

#[test]
fn append_results_survive_the_wire() {
    let id = LogId::new_term_index(3, 4);
    for result in [
        Ok(Some(id)),
        Ok(None),
        Err(StreamAppendError::Conflict(id)),
        Err(StreamAppendError::HigherVote(vote())),
    ] {
        let mut frame = BytesMut::new();
        put_append_result(&mut frame, &result);
        let body = body_of(&frame, Kind::AppendResult);
        assert_eq!(decode_append_result(body).unwrap(), result);
    }
}

#[test]
fn a_lying_length_is_refused_before_it_is_buffered() {
    let mut buffer = BytesMut::from(&[0xff, 0xff, 0xff, 0xff, 3][..]);
    assert!(take_frame(&mut buffer).is_err());
    let mut unknown = BytesMut::from(&[0, 0, 0, 1, 99][..]);
    assert!(take_frame(&mut unknown).is_err());
    let mut partial = BytesMut::from(&[0, 0, 0, 9, 3][..]);
    assert!(take_frame(&mut partial).unwrap().is_none());
    let mut hello = BytesMut::from(&[0, 1, 0, 0, Kind::Hello as u8][..]);
    assert!(take_frame(&mut hello).is_err());
    let mut append = BytesMut::from(&[0, 1, 0, 0, Kind::Append as u8][..]);
    assert!(take_frame(&mut append).unwrap().is_none());
}
