//! What the log carries.

use bytes::Bytes;
use raftmq_state::{Command, EntryPosition, Output, State, decode_payload};

/// One command.
pub fn command(bytes: &[u8]) {
    let encoded = Bytes::copy_from_slice(bytes);
    let Ok(command) = Command::decode(&encoded) else {
        return;
    };
    let again = Command::decode(&Bytes::copy_from_slice(command.encode().as_bytes()));
    assert_eq!(again, Ok(command), "a command means the same");
}

/// The payload of an entry: applying it twice to equal states gives equal results, and leaves a
/// state that keeps its invariants and survives a checkpoint.
pub fn payload(bytes: &[u8]) {
    let payload = Bytes::copy_from_slice(bytes);
    if let Ok((_, commands)) = decode_payload(&payload) {
        assert!(commands.len() <= bytes.len());
    }
    let position = EntryPosition {
        index: 1,
        payload_physical_offset: 64,
    };
    let apply = || {
        let (mut state, mut output) = (State::new(), Output::default());
        let result = state.apply(position, &payload, &mut output);
        result.map(|()| (state, output.replies))
    };
    let (first, second) = (apply(), apply());
    assert_eq!(first.is_ok(), second.is_ok(), "applying is a function");
    if let (Ok((state, replies)), Ok((other, other_replies))) = (first, second) {
        assert_eq!(replies, other_replies, "applying is a function");
        assert_eq!(state.hash(), other.hash(), "applying is a function");
        assert_eq!(state.check(), Ok(()), "invariants hold");
        let restored = State::decode(&state.encode()).expect("a checkpoint is read");
        assert_eq!(restored.hash(), state.hash(), "a checkpoint means the same");
    }
}

/// The state in a checkpoint.
pub fn state_checkpoint(bytes: &[u8]) {
    let Ok(state) = State::decode(bytes) else {
        return;
    };
    let encoded = state.encode();
    let again = State::decode(&encoded).expect("what was encoded is read");
    assert_eq!(again.encode(), encoded, "a state means the same");
}
