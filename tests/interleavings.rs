//! Hand-overs of the broker between tasks and threads, in many orders: who goes on at each use of what
//! they share is drawn from a seed. The code is the broker's own, with shuttle's atomics in the place
//! of the standard library's. Each is also run with mistakes that must be refuted. The hand-offs of
//! the store are in `broker/store/src/interleavings_tests.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

#[path = "../broker/replica/src/checkpoint/jobs.rs"]
mod jobs;

/// What `jobs` shares with its callers.
use shuttle::sync;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering};

use shuttle::{future::block_on, thread};

use jobs::{Inbox, Jobs, Pending};

/// Orders of one program that are tried.
const ORDERS: usize = 3_000;
const SEED: u64 = 1;
/// Jobs that are submitted; those that would find no room are left out.
const JOBS: usize = 7;
/// This one's work ends half way.
const FAILING: usize = 2;

/// The parts of the hand-over, so that a mistake can take the place of one.
#[derive(Clone, Copy)]
struct Parts {
    is_idle: fn(&Jobs<usize>) -> bool,
    /// Does one job with the given work, which says whether it went well.
    carry_out: fn(Pending, &dyn Fn() -> bool),
}

/// As the writer of checkpoints has it.
const REAL: Parts = Parts {
    is_idle: |jobs| jobs.is_idle(),
    carry_out: |pending, work| {
        work();
        drop(pending);
    },
};

/// What is seen of the jobs, from outside of what is judged.
#[derive(Default)]
struct Seen {
    under_way: Count,
    done: Count,
}

/// Does what comes; the number of jobs, which come in their order.
fn write(parts: Parts, mut inbox: Inbox<usize>, seen: &Seen) -> usize {
    block_on(async {
        let mut last = None;
        while let Some((job, pending)) = inbox.next().await {
            assert!(last < Some(job), "in their order, each once");
            last = Some(job);
            (parts.carry_out)(pending, &|| {
                let others = seen.under_way.fetch_add(1, Ordering::SeqCst);
                assert_eq!(others, 0, "one at a time");
                // The work is done on another thread, as that of a checkpoint.
                thread::spawn(thread::yield_now).join().unwrap();
                seen.under_way.fetch_sub(1, Ordering::SeqCst);
                seen.done.fetch_add(1, Ordering::SeqCst);
                job != FAILING
            });
        }
        seen.done.load(Ordering::SeqCst)
    })
}

fn program(parts: Parts) {
    let seen = Arc::new(Seen::default());
    let (jobs, inbox) = jobs::jobs();
    let by = Arc::clone(&seen);
    let writing = thread::spawn(move || write(parts, inbox, &by));
    let mut submitted = 0;
    for job in 0..JOBS {
        if jobs.has_room() {
            jobs.submit(job).expect("there is room");
            submitted += 1;
        }
        thread::yield_now();
        // Nobody else submits: what is idle stays so.
        if (parts.is_idle)(&jobs) {
            assert_eq!(
                seen.done.load(Ordering::SeqCst),
                submitted,
                "told too early"
            );
        }
    }
    // Its end is told: without it this has no end.
    let mut looks = 0;
    while !(parts.is_idle)(&jobs) {
        looks += 1;
        assert!(looks < 1_000, "the end of a job is never told");
        thread::yield_now();
    }
    drop(jobs);
    assert_eq!(writing.join().unwrap(), submitted, "each is done");
}

fn try_orders(parts: Parts) {
    shuttle::check_random_with_seed(move || program(parts), SEED, ORDERS);
}

/// An order is found that breaks a promise.
fn is_refuted(mistake: &str, parts: Parts) {
    let run = catch_unwind(AssertUnwindSafe(|| try_orders(parts)));
    assert!(run.is_err(), "{mistake}: no order shows it");
}

#[test]
fn one_checkpoint_is_written_at_a_time_and_its_end_is_always_told() {
    try_orders(REAL);
}

#[test]
fn a_writer_that_is_gone_gives_jobs_back_and_nothing_is_pending() {
    let gone = || {
        let (jobs, inbox) = jobs::jobs();
        let ends = thread::spawn(move || drop(inbox));
        let given = (0..3).filter(|job| jobs.submit(*job).is_err()).count();
        ends.join().unwrap();
        assert_eq!(jobs.submit(3), Err(3));
        assert!(given > 0 || !jobs.is_idle());
    };
    shuttle::check_random_with_seed(gone, SEED, ORDERS);
}

#[test]
fn mistakes_are_refuted() {
    let waiting = Parts {
        is_idle: |jobs| jobs.queue.capacity() == jobs.queue.max_capacity(),
        ..REAL
    };
    is_refuted("what is under way does not count", waiting);
    let early = Parts {
        carry_out: |pending, work| {
            drop(pending);
            work();
        },
        ..REAL
    };
    is_refuted("told before it is written", early);
    let silent = Parts {
        carry_out: |pending, work| match work() {
            true => drop(pending),
            false => {
                Box::leak(Box::new(pending));
            }
        },
        ..REAL
    };
    is_refuted("told only when it went well", silent);
}
