//! Appends and their flush.

use std::sync::Mutex;

use shuttle::sync::mpsc;
use shuttle::thread;

use super::*;
use crate::flush::{Operation, complete};
use crate::sync::atomic::Ordering;

const APPENDS: u64 = 3;

/// What was answered, in its order: which entry, and whether it is flushed.
type Answers = Arc<Mutex<Vec<(u64, bool)>>>;

/// What goes on beside the appends.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    /// The log is closed once all were answered: no answer needs another event.
    Nothing,
    /// The log is closed at any moment.
    Close,
    /// Syncs begin to fail at any moment; then it is closed.
    Failure,
    /// Somebody else flushes; then it is closed.
    Flush,
}

fn append_all(
    parts: Parts,
    log: &Arc<CommitLog>,
    answers: &Answers,
    told: &mpsc::Sender<()>,
) -> u64 {
    let is_synced = log.config().flush == FlushPolicy::Sync;
    for index in 0..APPENDS {
        let (seen, by, told) = (Arc::clone(log), Arc::clone(answers), told.clone());
        let done = move |result: std::io::Result<()>| {
            if result.is_ok() && is_synced {
                assert!(
                    seen.flushed_index() >= Some(index),
                    "answered before its flush"
                );
            }
            by.lock().unwrap().push((index, result.is_ok()));
            told.send(()).unwrap();
        };
        if (parts.append)(log, index, Box::new(done)).is_err() {
            return index;
        }
    }
    APPENDS
}

fn program(parts: Parts, beside: Beside, policy: FlushPolicy) {
    let disk = MemoryDisk::default();
    let (log, flusher, _) = open(&disk, policy);
    let answers = Answers::default();
    let (tell, told) = mpsc::channel();
    let flushing = thread::spawn(move || flush_to_the_end(parts, flusher));
    let appending = {
        let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
        thread::spawn(move || append_all(parts, &log, &answers, &tell))
    };
    match beside {
        Beside::Close => {}
        Beside::Nothing => (0..APPENDS).for_each(|_| told.recv().unwrap()),
        Beside::Failure => {
            thread::yield_now();
            disk.fail_syncs();
        }
        Beside::Flush => {
            let before = log.last_id().map_or(0, |last| last.index + 1);
            log.flush().unwrap();
            let answered = answers.lock().unwrap().len() as u64;
            assert!(answered >= before, "flushed, and an append still waits");
        }
    }
    let accepted = match beside {
        // It is stopped as soon as it may be, or only once all were appended.
        Beside::Nothing | Beside::Close | Beside::Flush => {
            (parts.close)(&log);
            appending.join().unwrap()
        }
        Beside::Failure => {
            let accepted = appending.join().unwrap();
            (parts.close)(&log);
            accepted
        }
    };
    let outcome = flushing.join().unwrap();
    let answers = answers.lock().unwrap().clone();
    let order: Vec<u64> = answers.iter().map(|(index, _)| *index).collect();
    assert_eq!(
        order,
        Vec::from_iter(0..accepted),
        "each once, in its order"
    );
    let flushed = answers.iter().take_while(|(_, ok)| *ok).count() as u64;
    assert!(
        answers[flushed as usize..].iter().all(|(_, ok)| !ok),
        "behind a failure"
    );
    if beside == Beside::Failure {
        assert!(matches!(outcome, FlushOutcome::Failed(_)), "{outcome:?}");
    } else {
        assert_eq!((flushed, outcome), (accepted, FlushOutcome::Stopped));
    }
    assert!(
        append(&log, accepted, Box::new(|_| ())).is_err(),
        "it takes no more"
    );
    let left = disk.fork();
    left.crash();
    let (again, ..) = open(&left, policy);
    let found = again.last_id().map_or(0, |last| last.index + 1);
    assert!(
        found >= flushed,
        "{flushed} were answered, {found} are there"
    );
}

fn run(parts: Parts, beside: Beside) -> impl Fn() + Send + Sync + Clone + 'static {
    move || program(parts, beside, FlushPolicy::Sync)
}

#[test]
fn every_append_is_answered_once_after_its_flush_though_the_log_is_closed() {
    holds(run(REAL, Beside::Nothing));
    holds(run(REAL, Beside::Close));
    holds(run(BUSY, Beside::Close));
}

#[test]
fn a_log_without_syncs_is_whole_once_it_has_stopped() {
    let interval = std::time::Duration::from_secs(1);
    holds(move || program(REAL, Beside::Close, FlushPolicy::Async { interval }));
}

#[test]
fn a_failed_flush_fails_everything_behind_it() {
    holds(run(REAL, Beside::Failure));
}

#[test]
fn two_that_flush_answer_each_append_once_in_its_order() {
    holds(run(REAL, Beside::Flush));
}

#[test]
fn mistakes_about_waking_are_refuted() {
    let asleep = Parts {
        flush: |flusher| {
            let log = Arc::clone(&flusher.log);
            let is_due = !log.queue().operations.is_empty() || log.is_closed();
            if !is_due {
                let mut queue = log.queue();
                queue.idle = true;
                queue = log.work.wait(queue).unwrap();
                queue.idle = false;
            }
            flusher.run_ready()
        },
        ..REAL
    };
    is_refuted(
        "it sleeps without a second look",
        run(asleep, Beside::Close),
    );
    let silent = Parts {
        flush: |flusher| {
            let log = Arc::clone(&flusher.log);
            let mut queue = log.queue();
            if queue.operations.is_empty() && !log.is_closed() {
                queue = log.work.wait(queue).unwrap();
            }
            drop(queue);
            flusher.run_ready()
        },
        ..REAL
    };
    is_refuted(
        "it does not say that it sleeps",
        run(silent, Beside::Nothing),
    );
    let unlocked = Parts {
        close: |log| {
            log.closed.store(true, Ordering::Release);
            log.work.notify_all();
        },
        ..REAL
    };
    is_refuted(
        "closed without the lock of the sleeper",
        run(unlocked, Beside::Close),
    );
}

#[test]
fn mistakes_about_answers_are_refuted() {
    let hasty = Parts {
        flush: |flusher| {
            flusher.log.wait_for_work();
            let log = Arc::clone(&flusher.log);
            for operation in &mut log.queue().operations {
                let done = operation.done.take();
                if let Some(done) = done {
                    thread::spawn(move || done(Ok(())));
                }
            }
            flusher.run_ready()
        },
        ..REAL
    };
    is_refuted("answered before the flush", run(hasty, Beside::Close));
    let late = Parts {
        flush: |flusher| {
            // Woken by its timer: nothing need be there.
            let mut io = flusher.log.io();
            let outcome = flusher.log.flush_batch(&mut io);
            if outcome == FlushOutcome::Idle && flusher.log.is_closed() {
                flusher.log.finish(&mut io).unwrap();
                return FlushOutcome::Stopped;
            }
            outcome
        },
        ..REAL
    };
    is_refuted(
        "it looks for the end after the batch",
        run(late, Beside::Close),
    );
    let unguarded = Parts {
        flush: |flusher| {
            flusher.log.wait_for_work();
            let is_closed = flusher.log.is_closed();
            let batch = flusher.log.take_batch();
            let mut io = flusher.log.io();
            flusher.log.write_batch(&mut io, &batch).unwrap();
            let is_idle = batch.is_empty();
            complete(batch, None);
            match is_idle && is_closed {
                true => FlushOutcome::Stopped,
                false => FlushOutcome::Idle,
            }
        },
        ..REAL
    };
    is_refuted(
        "it takes its batch before the lock",
        run(unguarded, Beside::Flush),
    );
}

#[test]
fn mistakes_about_failures_are_refuted() {
    /// As `run_once`, with another way to tell of a failure.
    fn flush(flusher: &mut Flusher, tell: fn(&CommitLog, Vec<Operation>)) -> FlushOutcome {
        flusher.log.wait_for_work();
        let log = &flusher.log;
        let mut io = log.io();
        let is_closed = log.is_closed();
        let batch = log.take_batch();
        if let Err(error) = log.write_batch(&mut io, &batch) {
            tell(log, batch);
            return FlushOutcome::Failed(error.to_string());
        }
        let is_idle = batch.is_empty();
        complete(batch, None);
        match is_idle && is_closed {
            true => FlushOutcome::Failed("closed".to_owned()),
            false => FlushOutcome::Idle,
        }
    }
    let own = Parts {
        flush: |flusher| {
            flush(flusher, |log, batch| {
                log.state_mut().failed = Some("failed".to_owned());
                complete(batch, Some("failed"));
            })
        },
        ..REAL
    };
    is_refuted("it fails its own batch only", run(own, Beside::Failure));
    let late = Parts {
        flush: |flusher| {
            flush(flusher, |log, batch| {
                complete(batch, Some("failed"));
                let waiting: Vec<Operation> = log.queue().operations.drain(..).collect();
                complete(waiting, Some("failed"));
                log.state_mut().failed = Some("failed".to_owned());
            })
        },
        ..REAL
    };
    is_refuted(
        "it takes appends once the waiting are told",
        run(late, Beside::Failure),
    );
}
