//! The flusher and the preallocator.

use std::path::Path;

use shuttle::thread;

use super::*;
use crate::disk::Disk;
use crate::prealloc::{NEW_SPARE_NAME, Spare};
use crate::segment::Segment;
use crate::sync::atomic::Ordering;

/// Two segments and the begin of a third.
const APPENDS: u64 = 11;

/// When the log is closed.
#[derive(Clone, Copy, PartialEq)]
enum Closed {
    Anytime,
    /// Once the preallocator has taken what it was asked for.
    WhenTaken,
}

fn fill_to_the_end(parts: Parts, mut preallocator: Preallocator) {
    loop {
        match (parts.preallocate)(&mut preallocator) {
            PreallocOutcome::Filled(_) => {}
            PreallocOutcome::Stopped => return,
            PreallocOutcome::Failed(error) => panic!("{error}"),
        }
    }
}

fn program(parts: Parts, closed: Closed) {
    let disk = MemoryDisk::default();
    let (log, flusher, preallocator) = open(&disk, FlushPolicy::Sync);
    let flushing = thread::spawn(move || flush_to_the_end(parts, flusher));
    let filling = thread::spawn(move || fill_to_the_end(parts, preallocator));
    let appending = {
        let log = Arc::clone(&log);
        thread::spawn(move || {
            let append = |index| append(&log, index, Box::new(|done| done.unwrap()));
            (0..APPENDS)
                .take_while(|index| append(*index).is_ok())
                .count() as u64
        })
    };
    let accepted = match closed {
        Closed::Anytime => {
            (parts.close)(&log);
            appending.join().unwrap()
        }
        Closed::WhenTaken => {
            let accepted = appending.join().unwrap();
            while !log.prealloc.requests().is_empty() {
                thread::yield_now();
            }
            (parts.close)(&log);
            accepted
        }
    };
    assert_eq!(flushing.join().unwrap(), FlushOutcome::Stopped);
    filling.join().unwrap();
    check_spare(&log, &disk);
    // A file that was handed over twice lacks what was written to it under the other name.
    let left = disk.fork();
    left.crash();
    let (again, ..) = open(&left, FlushPolicy::Sync);
    let found = again.last_id().map_or(0, |last| last.index + 1);
    assert_eq!(found, accepted, "entries in the files");
}

fn run(parts: Parts, closed: Closed) -> impl Fn() + Send + Sync + Clone + 'static {
    move || program(parts, closed)
}

/// The log is closed, and nothing else goes on: the one moment that matters comes often.
fn stop(parts: Parts) {
    let disk = MemoryDisk::default();
    let (log, _, preallocator) = open(&disk, FlushPolicy::Sync);
    let filling = thread::spawn(move || fill_to_the_end(parts, preallocator));
    (parts.close)(&log);
    filling.join().unwrap();
    check_spare(&log, &disk);
}

/// The first spare is taken as soon as it is there, while another is asked for, and nothing else goes
/// on.
fn take_one(parts: Parts) {
    let disk = MemoryDisk::default();
    let (log, _, mut preallocator) = open(&disk, FlushPolicy::Sync);
    let making = thread::spawn(move || {
        for _ in 0..2 {
            preallocator.log.prealloc.requests().first = true;
            let outcome = (parts.preallocate)(&mut preallocator);
            assert!(matches!(outcome, PreallocOutcome::Filled(_)), "{outcome:?}");
        }
    });
    while log.prealloc.spare().is_none() {
        thread::yield_now();
    }
    let segment = Segment::new(Path::new(DIR), 0, 0, 0);
    log.make_segment_file(&segment).unwrap();
    making.join().unwrap();
    let file = segment.file(log.disk()).unwrap();
    file.write_all_at(b"entry", 0).unwrap();
    let found = disk.content(segment.path());
    assert!(
        found.starts_with(b"entry"),
        "what was handed over is the segment"
    );
    check_spare(&log, &disk);
}

/// The spare that is counted is there, and no other.
fn check_spare(log: &CommitLog, disk: &MemoryDisk) {
    let path = |name: &str| Path::new(DIR).join(name);
    let half = disk.exists(&path(NEW_SPARE_NAME)).unwrap();
    assert!(!half, "half a spare is left");
    let spare = log.prealloc.spare().as_ref().map_or(0, |spare| spare.bytes);
    assert_eq!(
        log.prealloc.spare_bytes(),
        spare,
        "what is counted is there"
    );
    let on_disk = disk.exists(&path("spare")).unwrap();
    assert_eq!(on_disk, spare > 0, "the spare file");
}

#[test]
fn a_spare_that_is_taken_at_once_is_not_counted_any_more() {
    holds(|| take_one(REAL));
}

#[test]
fn a_spare_is_handed_over_once_and_none_is_lost_by_a_stop() {
    holds(run(REAL, Closed::Anytime));
    holds(run(REAL, Closed::WhenTaken));
    holds(|| stop(REAL));
}

#[test]
fn mistakes_about_waking_are_refuted() {
    let unlocked = Parts {
        close: |log| {
            let state = log.state_mut();
            log.closed.store(true, Ordering::Release);
            drop(state);
            let _queue = log.queue();
            log.work.notify_all();
            log.prealloc.work.notify_all();
        },
        ..REAL
    };
    is_refuted("closed without the lock of the sleeper", move || {
        stop(unlocked)
    });
    let blind = Parts {
        preallocate: |preallocator| {
            let state = &preallocator.log.prealloc;
            let mut requests = state.work.wait(state.requests()).unwrap();
            let requests = std::mem::take(&mut *requests);
            match preallocator.log.is_closed() {
                true => PreallocOutcome::Stopped,
                false => preallocator.fulfil(requests),
            }
        },
        ..REAL
    };
    is_refuted("it waits without a look", move || stop(blind));
}

/// A preallocator that makes spares only: `make` is called for each request.
fn spares(preallocator: &mut Preallocator, make: fn(&Preallocator, &Path, u64)) -> PreallocOutcome {
    let log = Arc::clone(&preallocator.log);
    let mut requests = log.prealloc.requests();
    while requests.is_empty() && !log.is_closed() {
        requests = log.prealloc.work.wait(requests).unwrap();
    }
    *requests = Default::default();
    drop(requests);
    if log.is_closed() {
        return PreallocOutcome::Stopped;
    }
    let path = log.dir().join(NEW_SPARE_NAME);
    make(preallocator, &path, log.config().preallocate_bytes);
    PreallocOutcome::Filled(0)
}

#[test]
fn mistakes_about_spares_are_refuted() {
    let unlocked = Parts {
        preallocate: |preallocator| {
            spares(preallocator, |preallocator, path, bytes| {
                let state = &preallocator.log.prealloc;
                if state.spare_bytes() > 0 {
                    return;
                }
                match preallocator.make_spare(path, bytes).unwrap() {
                    None => preallocator.log.disk().remove(path).unwrap(),
                    Some(file) => {
                        *state.spare() = Some(Spare { file, bytes });
                        state.spare_bytes.store(bytes, Ordering::Release);
                    }
                }
            })
        },
        ..REAL
    };
    is_refuted("counted once it can be taken", move || take_one(unlocked));
    let again = Parts {
        preallocate: |preallocator| {
            spares(preallocator, |preallocator, path, bytes| match preallocator
                .make_spare(path, bytes)
                .unwrap()
            {
                None => preallocator.log.disk().remove(path).unwrap(),
                Some(file) => {
                    let state = &preallocator.log.prealloc;
                    let mut spare = state.spare();
                    *spare = Some(Spare { file, bytes });
                    state.spare_bytes.store(bytes, Ordering::Release);
                }
            })
        },
        ..REAL
    };
    is_refuted("made though there is one", move || take_one(again));
    let leak = Parts {
        preallocate: |preallocator| {
            spares(preallocator, |preallocator, path, bytes| {
                let state = &preallocator.log.prealloc;
                if state.spare_bytes() == 0
                    && let Some(file) = preallocator.make_spare(path, bytes).unwrap()
                {
                    let mut spare = state.spare();
                    *spare = Some(Spare { file, bytes });
                    state.spare_bytes.store(bytes, Ordering::Release);
                }
            })
        },
        ..REAL
    };
    is_refuted("half a spare stays", move || stop(leak));
}
