//! Arbitrary and damaged bytes: decoders and apply answer with an error, they never panic.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::codec::Reader;
use crate::decode_payload;

/// A valid byte string with some of its bytes replaced and its end moved.
fn damaged(valid: &[u8], changes: &[(usize, u8)], length: usize) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for (position, value) in changes {
        let position = position % bytes.len();
        bytes[position] = *value;
    }
    bytes.truncate(length % (bytes.len() + 1));
    bytes
}

fn apply_to_some_state(payload: &Bytes) -> Result<State, crate::ApplyError> {
    let mut state = Replica::with_topics().state;
    let at = EntryPosition {
        index: 2,
        payload_physical_offset: 4096,
    };
    state.apply(at, payload, &mut Output::default())?;
    Ok(state)
}

fn changes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4)
}

proptest! {
    #![proptest_config(proptest_config(1_000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = State::decode(&bytes);
        let _ = State::read(&mut Reader::new(&bytes));
        let bytes = Bytes::from(bytes);
        let _ = Command::decode(&bytes);
        let _ = decode_payload(&bytes);
        let _ = apply_to_some_state(&bytes);
    }

    #[test]
    fn damaged_payload_never_breaks_an_invariant(
        changes in changes(),
        length in prop_oneof![Just(usize::MAX), any::<usize>()],
    ) {
        let valid = payload(7, &one_of_each());
        let length = if length == usize::MAX { valid.len() } else { length };
        let bytes = Bytes::from(damaged(&valid, &changes, length));
        let _ = decode_payload(&bytes);
        if let Ok(state) = apply_to_some_state(&bytes) {
            prop_assert_eq!(state.check(), Ok(()));
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }

    /// What decodes has one form: no two checkpoints, and no two commands, mean the same.
    #[test]
    fn damaged_checkpoint_is_refused_or_another_state(changes in changes()) {
        let mut replica = Replica::with_topics();
        replica.apply(7, &one_of_each());
        let valid = replica.state.encode();
        let mut bytes = damaged(&valid[..valid.len() - 4], &changes, valid.len() - 4);
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        if let Ok(state) = State::decode(&bytes) {
            prop_assert_eq!(State::decode(&state.encode()), Ok(state));
        }
    }
}
