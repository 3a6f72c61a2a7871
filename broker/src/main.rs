//! The binary `raftmq`; everything is in the library.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives memory back after a burst of clients; `broker/README.md`, chapter 10, compares.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    raftmq::cli::main()
}
