//! The gRPC interface of a RaftMQ process, generated from `proto/` at build
//! time: message types, client and server of `raftmq.admin.v1`.
//!
//! The protobuf files are the source of truth and carry the documentation of
//! every field. This crate holds no logic: the broker implements the server,
//! the operator and the tests use the client.

/// The services of RaftMQ itself.
pub mod raftmq {
    /// Administration of one broker group.
    pub mod admin {
        /// Version 1 of the administration service: status stream, leader
        /// transfer and membership changes.
        #[allow(
            missing_docs,
            unreachable_pub,
            unused_qualifications,
            missing_debug_implementations,
            clippy::all,
            clippy::pedantic,
            clippy::restriction,
            clippy::nursery,
            reason = "generated code; the lints are for code written by hand"
        )]
        pub mod v1 {
            tonic::include_proto!("raftmq.admin.v1");
        }
    }
}

pub use raftmq::admin::v1 as admin;
