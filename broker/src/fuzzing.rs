//! The door for `tests/fuzz`: decoders that are private to their crates, each as a function from
//! bytes to what it made of them. Nothing else may use it.
//!
//! `Option<Vec<u8>>` is the input decoded and encoded again; `None`: it was refused.

pub use raftmq_config::fuzzing::{java_properties, raft_peers};
pub use raftmq_namesrv::fuzzing::{
    kv_config, namesrv_requests, register_body, register_body_example,
};
pub use raftmq_replica::fuzzing::{
    checkpoint_sections, raft_connection, raft_frame, raft_frame_examples,
};
