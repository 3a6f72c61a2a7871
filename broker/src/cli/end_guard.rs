//! `raftmq end-guard`: lets a broker vote that lost the end of its log, on the word of an operator.

use std::path::PathBuf;

use clap::Args;
use raftmq_store::{RealDisk, StoreError, end_guard};

/// `raftmq end-guard`.
#[derive(Debug, Args)]
pub(crate) struct EndGuardArgs {
    /// `storePathCommitLog` of the broker, which must be stopped.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Says that acknowledged messages may be lost by it.
    #[arg(long, required = true)]
    accept_loss: bool,
}

pub(crate) fn run(args: &EndGuardArgs) -> Result<(), StoreError> {
    println!("{}", text(end_guard(&RealDisk, &args.folder)?));
    Ok(())
}

fn text(was_guarded: bool) -> &'static str {
    if was_guarded {
        "the broker votes from its next start on"
    } else {
        "nothing kept the broker from voting"
    }
}
