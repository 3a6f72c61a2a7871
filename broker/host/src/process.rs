//! Threads, random numbers, memory and the end of a process. A simulation puts its own in place of all
//! of them; many processes then share one thread, and one seed decides everything.

use std::{
    cell::RefCell,
    hash::{BuildHasher, RandomState},
    rc::Rc,
    time::Duration,
};

use raftmq_store::{EntryKind, LogId};
use tokio::{task::JoinError, time::sleep};

use crate::memory;

/// Stands in for the operating system under a simulated process.
pub trait Simulation {
    /// The next random number.
    fn number(&self) -> u64;

    /// How long the disk takes for what is asked of it now.
    fn disk_pause(&self) -> Duration;

    /// The process has ended itself. Nothing that it does from now on may have an effect.
    fn end_process(&self, reason: &str);

    /// Size of the parts in which a snapshot is sent, when it is not what it always is. Unit: bytes.
    fn snapshot_part_bytes(&self) -> Option<usize>;

    /// The process has applied an entry.
    fn applied(&self, entry: AppliedEntry<'_>);

    /// Entries of one leader, from the first to the last id, are where an acknowledgement wants them:
    /// the process may acknowledge them from now on.
    fn acknowledgeable(&self, first: LogId, last: LogId);
}

/// An entry as the state machine has applied it.
#[derive(Debug, Clone, Copy)]
pub struct AppliedEntry<'a> {
    /// Index in the log.
    pub index: u64,
    /// Term of the leader that appended it.
    pub term: u64,
    /// What it is.
    pub kind: EntryKind,
    /// Commands, or the membership as JSON; empty in a blank entry.
    pub payload: &'a [u8],
    /// Address of the payload in the log; 0 where the state machine does not get it.
    pub physical_offset: u64,
}

/// What a simulated process may use.
const SIMULATED_MEMORY_BYTES: u64 = 4 << 30;

thread_local! {
    static SIMULATION: RefCell<Option<Rc<dyn Simulation>>> = const { RefCell::new(None) };
}

/// Runs `work` as part of a simulated process; its tasks must stay on this thread.
pub fn simulate<T>(simulation: Rc<dyn Simulation>, work: impl FnOnce() -> T) -> T {
    struct Restore(Option<Rc<dyn Simulation>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SIMULATION.set(self.0.take());
        }
    }
    let _restore = Restore(SIMULATION.replace(Some(simulation)));
    work()
}

/// Asks the simulation that this thread runs, if it runs one.
pub fn simulated<T>(ask: impl FnOnce(&dyn Simulation) -> T) -> Option<T> {
    let simulation = SIMULATION.with_borrow(Option::clone)?;
    Some(ask(&*simulation))
}

/// Whether this thread runs a simulation: then it is the only one.
pub fn is_simulated() -> bool {
    SIMULATION.with_borrow(Option::is_some)
}

/// Runs work that waits for the disk on a thread where nothing else waits for it.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match simulated(|simulation| simulation.disk_pause()) {
        None => tokio::task::spawn_blocking(work).await,
        Some(pause) => {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            Ok(work())
        }
    }
}

/// Memory that this process may use. Unit: bytes.
pub fn memory_bytes() -> u64 {
    // The same on whatever machine a simulation runs.
    simulated(|_| SIMULATED_MEMORY_BYTES).unwrap_or_else(memory::of_this_machine)
}

/// A number nobody can guess. The keys of the standard library's hashes are random numbers of the
/// system.
pub fn random_number() -> u64 {
    simulated(|simulation| simulation.number()).unwrap_or_else(|| RandomState::new().hash_one(0_u8))
}

/// Ends the process at once: what it has in memory must not reach the disk or anybody any more.
pub fn end_process(reason: &str) {
    if simulated(|simulation| simulation.end_process(reason)).is_none() {
        std::process::abort();
    }
}
