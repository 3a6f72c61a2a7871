//! A checkpoint is the whole state, has one form, and is refused when damaged.

use super::*;
use crate::invariant::{InvariantId, Violation};
use crate::{DecodeError, QueueState};

fn full() -> Replica {
    let mut replica = Replica::default();
    replica.apply(5, &one_of_each());
    replica
}

/// S2.
#[test]
fn decoded_state_equals_the_encoded_one() {
    for replica in [Replica::default(), Replica::with_topics(), full()] {
        let bytes = replica.state.encode();
        let decoded = State::decode(&bytes).unwrap();
        assert_eq!(decoded, replica.state);
        assert_eq!(decoded.encode(), bytes);
        assert_eq!(decoded.hash(), replica.state.hash());
    }
}

#[test]
fn hash_tells_states_apart() {
    let mut replica = full();
    let before = replica.state.hash();
    replica.state.skip(9).unwrap();
    assert_ne!(replica.state.hash(), before);
}

/// The form is on disks and in snapshots: a change here needs a new version.
#[test]
fn empty_checkpoint_is_frozen() {
    let mut expected = b"RQST\x01\0\0\0".to_vec();
    expected.extend([0; 8 + 4 + 48 + 6 * 4]);
    let checksum = crc32fast::hash(&expected);
    expected.extend(checksum.to_le_bytes());
    assert_eq!(State::new().encode(), expected);
}

#[test]
fn any_flipped_bit_is_noticed() {
    let bytes = full().state.encode();
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        assert!(matches!(
            State::decode(&damaged),
            Err(DecodeError::Checksum { .. })
        ));
    }
}

#[test]
fn any_prefix_is_refused() {
    let bytes = full().state.encode();
    for length in 0..bytes.len() {
        assert!(State::decode(&bytes[..length]).is_err());
    }
}

fn broken(change: impl FnOnce(&mut State)) -> InvariantId {
    let mut state = full().state;
    change(&mut state);
    let Violation { id, detail } = state.check().unwrap_err();
    assert_eq!(
        State::decode(&state.encode()).unwrap_err(),
        Violation { id, detail }.into()
    );
    id
}

#[test]
fn state_with_a_broken_invariant_is_refused() {
    assert_eq!(
        broken(|state| state.topics.topics.get_mut("T").unwrap().queues.truncate(2)),
        InvariantId::Q2
    );
    assert_eq!(
        broken(|state| {
            let repeated = QueueState {
                number: 0,
                next_offset: 0,
            };
            state
                .topics
                .topics
                .get_mut("T")
                .unwrap()
                .queues
                .push(repeated);
        }),
        InvariantId::Q3
    );
    assert_eq!(
        broken(|state| state.topics.next_queue_number = 1),
        InvariantId::Q3
    );
    assert_eq!(
        broken(|state| {
            state.topics.topics.get_mut("T").unwrap().queues[0].next_offset = u64::MAX;
        }),
        InvariantId::Q4
    );
    assert_eq!(
        broken(|state| state.offsets.insert("g", "none", 0, 1)),
        InvariantId::O1
    );
    assert_eq!(
        broken(|state| {
            state.locks.lock("g", "c", "T", 9, 1);
        }),
        InvariantId::L2
    );
}

#[test]
fn configuration_under_another_name_is_noticed() {
    let mut state = full().state;
    state
        .groups
        .groups
        .insert("other".to_owned(), group_config("g"));
    assert_eq!(state.check().unwrap_err().id, InvariantId::N1);
    let mut state = full().state;
    let topic = state.topics.topics.remove("T").unwrap();
    state.topics.topics.insert("other".to_owned(), topic);
    assert_eq!(state.check().unwrap_err().id, InvariantId::N1);
}

#[test]
fn every_invariant_has_one_statement() {
    let mut statements = InvariantId::ALL.map(InvariantId::statement).to_vec();
    statements.sort_unstable();
    statements.dedup();
    assert_eq!(statements.len(), InvariantId::ALL.len());
    let text = InvariantId::Q1.to_string();
    assert_eq!(
        text,
        "Q1: queue offsets of a queue are dense from 0 in the order of the log"
    );
}
