//! Compiles the protobuf files of this crate with `protox`, so that a build
//! needs no `protoc` on the machine.

use std::error::Error;
use std::path::PathBuf;

/// Folder that the import paths of the protobuf files start from.
const PROTO_ROOT: &str = "proto";

/// Files to compile, relative to [`PROTO_ROOT`].
const PROTO_FILES: [&str; 1] = ["raftmq/admin/v1/admin.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed={PROTO_ROOT}");
    let files = PROTO_FILES.map(|file| PathBuf::from(PROTO_ROOT).join(file));
    let descriptors = protox::compile(files, [PROTO_ROOT])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
