//! Hand-offs between threads, in many orders: who appends, the flusher, who flushes by itself (a vote),
//! who stops the log; the flusher and the preallocator. The code is the log's own, on a disk in
//! memory; who goes on at each use of what threads share is drawn from a seed. Each is also run with
//! mistakes in the place of one of its parts: an order must be found that breaks a promise.
//!
//!     cargo test -p raftmq-store --features interleavings --lib interleavings
//!
//! No time passes here and no wait times out, so that nothing can rely on being woken by its timer;
//! [`BUSY`] has waits that end at any moment.

mod flush;
mod prealloc;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use shuttle::Runner;
use shuttle::rand::RngCore;
use shuttle::scheduler::PctScheduler;

use crate::log_tests::{DIR, config, entry};
use crate::test_disk::MemoryDisk;
use crate::{CommitLog, Completion, FlushOutcome, FlushPolicy, Flusher, LogConfig};
use crate::{PreallocOutcome, Preallocator, StoreError};

/// Orders of one program that are tried.
const ORDERS: usize = 1_000;
/// The same for a program with a mistake, at most: the first that shows it is enough.
const MISTAKEN_ORDERS: usize = 30_000;
/// Orders of one seed: half are drawn anew at each step, half follow priorities that change.
const ORDERS_OF_A_SEED: usize = 100;
/// Changes of who goes on that an order found by priorities has.
const CHANGES: usize = 3;

/// The parts of a hand-off, so that a mistake can take the place of one.
#[derive(Clone, Copy)]
struct Parts {
    append: fn(&CommitLog, u64, Completion) -> Result<(), StoreError>,
    flush: fn(&mut Flusher) -> FlushOutcome,
    close: fn(&CommitLog),
    preallocate: fn(&mut Preallocator) -> PreallocOutcome,
}

/// Those of the log.
const REAL: Parts = Parts {
    append,
    flush: Flusher::run_once,
    close: CommitLog::close,
    preallocate: Preallocator::run_once,
};

/// With a flusher that has upkeep to do: its wait ends without any work, by its timer.
const BUSY: Parts = Parts {
    flush: |flusher| match shuttle::rand::thread_rng().next_u32() % 2 {
        0 => flusher.run_once(),
        _ => flusher.run_ready(),
    },
    ..REAL
};

/// Payload of an entry: five of them fill a segment.
const PAYLOAD_BYTES: usize = 700;

fn append(log: &CommitLog, index: u64, done: Completion) -> Result<(), StoreError> {
    let payload = vec![index as u8; PAYLOAD_BYTES];
    log.append(vec![entry(1, index, &payload)], done)
}

/// A clock that stands still.
fn now() -> Instant {
    static BEGIN: OnceLock<Instant> = OnceLock::new();
    *BEGIN.get_or_init(Instant::now)
}

fn open(disk: &MemoryDisk, flush: FlushPolicy) -> (Arc<CommitLog>, Flusher, Preallocator) {
    let config = LogConfig {
        flush,
        now,
        ..config()
    };
    let opened = CommitLog::open(Arc::new(disk.clone()), config, None);
    let (log, flusher, preallocator, _) = opened.unwrap();
    (log, flusher, preallocator)
}

/// Flushes until there is nothing to come, and says how it ended.
fn flush_to_the_end(parts: Parts, mut flusher: Flusher) -> FlushOutcome {
    loop {
        let outcome = (parts.flush)(&mut flusher);
        if matches!(outcome, FlushOutcome::Stopped | FlushOutcome::Failed(_)) {
            return outcome;
        }
    }
}

/// Every order that is tried keeps what the program asserts, and the program ends in it.
fn holds(program: impl Fn() + Send + Sync + Clone + 'static) {
    try_orders(program, ORDERS);
}

fn try_orders(program: impl Fn() + Send + Sync + Clone + 'static, orders: usize) {
    let half = ORDERS_OF_A_SEED / 2;
    for seed in 0..(orders / ORDERS_OF_A_SEED) as u64 {
        shuttle::check_random_with_seed(program.clone(), seed, half);
        let by_priority = PctScheduler::new_from_seed(seed, CHANGES, half);
        Runner::new(by_priority, shuttle::Config::default()).run(program.clone());
    }
}

/// An order is found in which the program does not.
fn is_refuted(mistake: &str, program: impl Fn() + Send + Sync + Clone + 'static) {
    let run = catch_unwind(AssertUnwindSafe(|| try_orders(program, MISTAKEN_ORDERS)));
    let found = run.expect_err(mistake);
    let text = found.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| found.downcast_ref::<&str>().copied());
    println!(
        "{mistake}: {}",
        text.unwrap_or("an order was found")
            .lines()
            .next()
            .unwrap_or("")
    );
}
