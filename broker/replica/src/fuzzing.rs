//! The door for `tests/fuzz`: decoders that are private to this crate, each as a function from bytes
//! to what it made of them. Nothing else may use it.
//!
//! `Option<Vec<u8>>` is the input decoded and encoded again; `None`: it was refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use raftmq_store::{LogId, checkpoint::Checkpoint};

pub use crate::raft::fuzzing::{raft_connection, raft_frame, raft_frame_examples};

/// The sections of a checkpoint, tags counted from 1, as a restart and a follower read them.
#[must_use]
pub fn checkpoint_sections(sections: &[&[u8]]) -> Option<Vec<Vec<u8>>> {
    let tagged: BTreeMap<u32, Bytes> = (1..)
        .zip(sections)
        .map(|(tag, bytes)| (tag, Bytes::copy_from_slice(bytes)))
        .collect();
    let id = LogId {
        term: 1,
        node: 0,
        index: 1,
    };
    let written = Checkpoint {
        id,
        sections: tagged,
    };
    let read = Checkpoint::decode(written.encode()).ok()?;
    let restored = crate::checkpoint::restore(&read).ok()?;
    crate::raft::fuzzing::check_snapshot(&restored)?;
    let membership = crate::checkpoint::membership_section(&restored.membership);
    let state = restored.state.encode();
    Some(vec![
        state,
        restored.position.encode(),
        membership.to_vec(),
        restored.index_manifest?.to_vec(),
        restored.last_store_timestamp_ms.to_le_bytes().to_vec(),
    ])
}
