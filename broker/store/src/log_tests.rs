//! Properties of the log as a whole: against a naive model, and of its flusher.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;

use crate::test_disk::MemoryDisk;
use crate::*;

pub(crate) const DIR: &str = "/data";

pub(crate) fn config() -> LogConfig {
    LogConfig {
        segment_bytes: 4096,
        tail_bytes: 2000,
        preallocate_bytes: 3000,
        flush_batch_bytes_max: 64 * 1024,
        ..LogConfig::new(DIR)
    }
}

pub(crate) fn entry(term: u64, index: u64, payload: &[u8]) -> NewEntry {
    NewEntry {
        id: LogId {
            term,
            node: term % 3,
            index,
        },
        kind: EntryKind::Normal,
        count: 1,
        payload: Bytes::copy_from_slice(payload),
    }
}

pub(crate) type Opened = (Arc<CommitLog>, Flusher, Preallocator, RecoveryReport);

pub(crate) fn open(disk: &MemoryDisk, start: Option<&LogPosition>) -> Result<Opened, StoreError> {
    CommitLog::open(Arc::new(disk.clone()), config(), start)
}

/// Appends and flushes `count` entries of one term, as one batch.
pub(crate) fn append_flushed(log: &CommitLog, term: u64, count: u64, payload_bytes: usize) {
    let next = log.last_id().map_or(0, |last| last.index + 1);
    let entries = (next..next + count)
        .map(|index| entry(term, index, &vec![index as u8; payload_bytes]))
        .collect();
    log.append(entries, Box::new(|done| done.unwrap())).unwrap();
    log.flush().unwrap();
}

#[test]
fn a_truncation_behind_the_end_removes_nothing_and_one_into_what_is_purged_is_refused() {
    let (log, ..) = open(&MemoryDisk::default(), None).unwrap();
    log.truncate_after(Some(0)).unwrap();
    append_flushed(&log, 1, 5, 100);
    log.purge_upto(entry(1, 1, &[]).id).unwrap();
    for index in [4, 5, u64::MAX] {
        log.truncate_after(Some(index)).unwrap();
        assert_eq!(log.last_id().unwrap().index, 4);
    }
    assert!(log.truncate_after(Some(0)).is_err());
    assert!(log.truncate_after(None).is_err());
    log.truncate_after(Some(1)).unwrap();
    assert_eq!(log.last_id(), log.purged_id());
}

#[derive(Debug, Clone)]
enum Step {
    Append { sizes: Vec<usize>, new_term: bool },
    Flush,
    Preallocate,
    Truncate { back: u64 },
    Purge { forward: u64 },
    Reset { skip: u64, gap: u64 },
    Crash { from_position: bool },
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let size = prop_oneof![6 => 0usize..300, 2 => 300usize..3000, 1 => 5000usize..9000];
    let append = (prop::collection::vec(size, 0..6), prop::bool::weighted(0.2))
        .prop_map(|(sizes, new_term)| Step::Append { sizes, new_term });
    let step = prop_oneof![
        10 => append,
        4 => Just(Step::Flush),
        2 => Just(Step::Preallocate),
        2 => (0u64..12).prop_map(|back| Step::Truncate { back }),
        2 => (0u64..12).prop_map(|forward| Step::Purge { forward }),
        1 => (0u64..9, 0u64..5000).prop_map(|(skip, gap)| Step::Reset { skip, gap }),
        2 => any::<bool>().prop_map(|from_position| Step::Crash { from_position }),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..60)
}

/// The log as a plain list.
#[derive(Debug, Default)]
struct Model {
    /// Stored entries, also purged ones that share a segment with later ones.
    entries: Vec<StoredEntry>,
    purged: Option<LogId>,
    /// Address and index of the next entry when none is stored.
    empty_at: u64,
    term: u64,
    flushed_index: Option<u64>,
    position: Option<LogPosition>,
}

impl Model {
    fn first_index(&self) -> u64 {
        self.purged.map_or(0, |purged| purged.index + 1)
    }

    fn last_id(&self) -> Option<LogId> {
        self.entries.last().map(|last| last.id).or(self.purged)
    }

    fn next_index(&self) -> u64 {
        self.last_id().map_or(0, |last| last.index + 1)
    }

    fn end(&self) -> u64 {
        self.entries
            .last()
            .map_or(self.empty_at, StoredEntry::end_physical)
    }

    fn live(&self) -> &[StoredEntry] {
        let at = self
            .entries
            .partition_point(|entry| entry.id.index < self.first_index());
        &self.entries[at..]
    }

    fn term_starts(&self) -> Vec<LogId> {
        let mut starts: Vec<LogId> = Vec::new();
        for entry in self.live() {
            if starts
                .last()
                .is_none_or(|start| !start.same_leader(&entry.id))
            {
                starts.push(entry.id);
            }
        }
        starts
    }

    fn cut(&mut self, next_index: u64) {
        let at = self
            .entries
            .partition_point(|entry| entry.id.index < next_index);
        if let Some(first) = self.entries.get(at) {
            self.empty_at = first.physical_offset;
        }
        self.entries.truncate(at);
        let last = next_index.checked_sub(1);
        self.flushed_index = self.flushed_index.min(last);
        self.position = self.position.take().filter(|at| Some(at.id.index) <= last);
    }
}

struct Run {
    disk: MemoryDisk,
    opened: Option<Opened>,
    model: Model,
}

impl Run {
    fn log(&self) -> &CommitLog {
        &self.opened.as_ref().unwrap().0
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Append { sizes, new_term } => self.append(sizes, *new_term),
            Step::Flush => {
                self.log().flush().unwrap();
                self.model.flushed_index = self.model.last_id().map(|id| id.index);
                if let Some(index) = self.model.flushed_index {
                    self.model.position = Some(self.log().position_at(index).unwrap());
                }
            }
            Step::Preallocate => {
                let outcome = self.opened.as_mut().unwrap().2.run_ready();
                assert!(matches!(outcome, PreallocOutcome::Filled(_)), "{outcome:?}");
            }
            Step::Truncate { back } => {
                let (first, next) = (self.model.first_index(), self.model.next_index());
                let keep = next.saturating_sub(*back).max(first);
                if keep == 0 && self.model.purged.is_none() {
                    self.log().truncate_after(None).unwrap();
                } else {
                    self.log().truncate_after(keep.checked_sub(1)).unwrap();
                }
                self.model.flushed_index = self.model.last_id().map(|id| id.index);
                self.model.cut(keep);
            }
            Step::Purge { forward } => self.purge(*forward),
            Step::Reset { skip, gap } => {
                self.model.term += 1;
                let index = self.model.next_index() + skip;
                let purged = LogId {
                    term: self.model.term,
                    node: 7,
                    index,
                };
                let physical = self.model.end() + gap;
                self.log().reset(purged, physical, 99).unwrap();
                self.model = Model {
                    purged: Some(purged),
                    empty_at: physical,
                    term: self.model.term,
                    flushed_index: Some(index),
                    ..Model::default()
                };
            }
            Step::Crash { from_position } => {
                self.opened = None;
                self.disk.crash();
                let next = self.model.flushed_index.map_or(0, |index| index + 1);
                self.model.cut(next.max(self.model.first_index()));
                let start = self.model.position.clone().filter(|_| *from_position);
                self.opened = Some(open(&self.disk, start.as_ref()).unwrap());
            }
            Step::Close => {
                let (log, mut flusher, ..) = self.opened.take().unwrap();
                log.close();
                while flusher.run_once() != FlushOutcome::Stopped {}
                drop((log, flusher));
                self.model.flushed_index = self.model.last_id().map(|id| id.index);
                self.opened = Some(open(&self.disk, None).unwrap());
            }
        }
    }

    fn append(&mut self, sizes: &[usize], new_term: bool) {
        let model = &mut self.model;
        model.term += u64::from(new_term);
        let mut entries = Vec::new();
        for size in sizes {
            let index = model.next_index();
            let new = entry(model.term, index, &vec![(index * 7) as u8; *size]);
            model.entries.push(StoredEntry {
                id: new.id,
                kind: new.kind,
                count: new.count,
                payload: new.payload.clone(),
                physical_offset: model.end(),
            });
            entries.push(new);
        }
        self.log().append(entries, Box::new(|_| ())).unwrap();
    }

    fn purge(&mut self, forward: u64) {
        let index = self.model.first_index() + forward;
        let Some(id) = self
            .model
            .live()
            .iter()
            .map(|e| e.id)
            .find(|id| id.index == index)
        else {
            return;
        };
        self.log().purge_upto(id).unwrap();
        self.model.flushed_index = self.model.last_id().map(|id| id.index);
        self.model.purged = Some(id);
        let min = self.log().min_physical();
        assert!(self.log().is_segment_base(min));
        let kept = self
            .model
            .entries
            .iter()
            .position(|e| e.physical_offset == min);
        self.model
            .entries
            .drain(..kept.expect("the log begins with an entry"));
    }

    /// Everything readable equals the model.
    fn check(&self) {
        let (log, model) = (self.log(), &self.model);
        assert_eq!(log.first_index(), model.first_index());
        assert_eq!(log.last_id(), model.last_id());
        assert_eq!(log.max_physical(), model.end());
        assert_eq!(log.term_starts(), model.term_starts());
        let (first, next) = (model.first_index(), model.next_index());
        let live = model.live();
        for bytes_max in [0, 700, 20_000, u64::MAX] {
            let from = first + (bytes_max % 5).min(next - first);
            let read = log.read(from, next, bytes_max).unwrap();
            let expected = &live[(from - first) as usize..];
            assert_eq!(read, expected[..read.len()]);
            assert!(from == next || !read.is_empty());
            assert!(bytes_max < u64::MAX || read.len() == expected.len());
        }
        let flat: Vec<u8> = model
            .entries
            .iter()
            .flat_map(|e| [vec![0; HEADER_BYTES], e.payload.to_vec()].concat())
            .collect();
        let all = log.read_bytes(log.min_physical(), flat.len()).unwrap();
        assert_eq!(all.len(), flat.len());
        for stored in &model.entries {
            let position = log.position_at(stored.id.index);
            if stored.id.index + 1 >= first {
                assert_eq!(position.unwrap().end_physical, stored.end_physical());
            }
            let bytes = log.read_bytes(stored.payload_physical(), stored.payload.len());
            assert_eq!(bytes.unwrap(), stored.payload);
            let at = (stored.payload_physical() - log.min_physical()) as usize;
            assert_eq!(all[at..at + stored.payload.len()], stored.payload);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 150 } else { 3000 }))]
    #[test]
    fn the_log_equals_a_plain_list(steps in steps()) {
        let disk = MemoryDisk::default();
        let opened = Some(open(&disk, None).unwrap());
        let mut run = Run { disk, opened, model: Model::default() };
        for step in &steps {
            run.step(step);
            run.check();
        }
    }
}

#[test]
fn what_waits_together_is_synced_once_and_completed_in_order() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 1, 1);
    let before = disk.syncs();
    let order = Arc::new(Mutex::new(Vec::new()));
    for number in 1..=30u64 {
        let order = order.clone();
        let done = move |result: std::io::Result<()>| {
            result.unwrap();
            order.lock().unwrap().push(number);
        };
        let entries = if number % 5 == 0 {
            vec![]
        } else {
            vec![entry(1, log.last_id().unwrap().index + 1, b"x")]
        };
        log.append(entries, Box::new(done)).unwrap();
    }
    assert!(log.oldest_unflushed_since().is_some());
    log.flush().unwrap();
    assert_eq!(*order.lock().unwrap(), (1..=30).collect::<Vec<u64>>());
    assert_eq!(disk.syncs() - before, 1);
    assert_eq!(log.oldest_unflushed_since(), None);
    assert_eq!(log.flushed_index(), Some(24));
}

#[test]
fn an_entry_waits_for_the_disk_only_while_the_flusher_is_at_work() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 1, 1);
    flusher.begin();
    assert_eq!(log.waits_for_disk_since(), None, "nothing waits");
    flusher.run_ready();
    let id = log.last_id().unwrap().index + 1;
    log.append(vec![entry(1, id, b"x")], Box::new(|_| ()))
        .unwrap();
    assert!(log.oldest_unflushed_since().is_some());
    assert_eq!(log.waits_for_disk_since(), None, "the flusher was not here");
    flusher.begin();
    assert!(log.waits_for_disk_since().is_some());
    flusher.run_ready();
    assert_eq!(log.waits_for_disk_since(), None);
}

#[test]
fn a_failed_sync_is_told_to_everyone_and_is_final() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, ..) = open(&disk, None).unwrap();
    disk.fail_syncs();
    let failures = Arc::new(AtomicU64::new(0));
    for index in 0..3 {
        let failures = failures.clone();
        let done = move |result: std::io::Result<()>| {
            assert!(result.is_err());
            failures.fetch_add(1, Ordering::Relaxed);
        };
        log.append(vec![entry(1, index, &[0; 50_000])], Box::new(done))
            .unwrap();
    }
    assert!(matches!(flusher.run_once(), FlushOutcome::Failed(_)));
    assert_eq!(failures.load(Ordering::Relaxed), 3);
    let refused = log.append(vec![entry(1, 3, b"")], Box::new(|_| panic!("not appended")));
    assert!(matches!(refused, Err(StoreError::Failed(_))));
    assert!(matches!(log.save_vote(b"vote"), Err(StoreError::Failed(_))));
    assert!(matches!(flusher.run_once(), FlushOutcome::Failed(_)));
}

#[test]
fn a_full_disk_stops_only_the_preallocator() {
    let disk = MemoryDisk::default();
    let (log, _flusher, mut preallocator, _) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 3, 100);
    disk.fail_writes(true);
    assert!(matches!(
        preallocator.run_ready(),
        PreallocOutcome::Failed(_)
    ));
    disk.fail_writes(false);
    append_flushed(&log, 1, 3, 100);
}

/// It may be the failure of entries in the same file, and is told only once.
#[test]
fn a_failed_sync_of_the_preallocator_is_final_too() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, mut preallocator, _) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 3, 100);
    disk.fail_syncs();
    assert!(matches!(
        preallocator.run_ready(),
        PreallocOutcome::Failed(_)
    ));
    let refused = log.append(vec![entry(1, 3, b"")], Box::new(|_| ()));
    assert!(matches!(refused, Err(StoreError::Failed(_))));
    assert!(matches!(flusher.run_once(), FlushOutcome::Failed(_)));
}

#[test]
fn gaps_and_falling_terms_are_refused() {
    let (log, ..) = open(&MemoryDisk::default(), None).unwrap();
    append_flushed(&log, 5, 2, 10);
    for (term, index) in [(5, 3), (5, 1), (4, 2)] {
        let refused = log.append(vec![entry(term, index, b"")], Box::new(|_| ()));
        assert!(matches!(
            refused,
            Err(StoreError::NotContinuous { expected: 2, .. })
        ));
    }
    append_flushed(&log, 5, 1, 10);
}

#[test]
fn committed_is_remembered_and_votes_are_bounded() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, preallocator, _) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 4, 10);
    let id = LogId {
        term: 1,
        node: 1,
        index: 2,
    };
    log.save_committed(id).unwrap();
    log.save_vote(b"me").unwrap();
    assert!(matches!(
        log.save_vote(&[0; 65]),
        Err(StoreError::TooLarge { .. })
    ));
    log.close();
    assert!(matches!(
        log.append(vec![], Box::new(|_| ())),
        Err(StoreError::Closed)
    ));
    while flusher.run_once() != FlushOutcome::Stopped {}
    drop((log, flusher, preallocator));
    let (log, ..) = open(&disk, None).unwrap();
    assert_eq!(
        (log.committed(), log.read_vote()),
        (Some(id), Some(b"me".to_vec()))
    );
}

#[test]
fn async_flush_completes_after_the_write_and_syncs_later() {
    let disk = MemoryDisk::default();
    let interval = std::time::Duration::ZERO;
    let later = std::time::Duration::from_secs(3600);
    for (interval, synced) in [(interval, true), (later, false)] {
        let config = LogConfig {
            flush: FlushPolicy::Async { interval },
            ..config()
        };
        let (log, mut flusher, ..) = CommitLog::open(Arc::new(disk.fork()), config, None).unwrap();
        let done = Arc::new(AtomicU64::new(0));
        let seen = done.clone();
        let count = move |_| {
            seen.fetch_add(1, Ordering::Relaxed);
        };
        log.append(vec![entry(1, 0, b"x")], Box::new(count))
            .unwrap();
        assert!(matches!(
            flusher.run_once(),
            FlushOutcome::Flushed { entries: 1, .. }
        ));
        assert_eq!(done.load(Ordering::Relaxed), 1);
        assert_eq!(log.flushed_index().is_some(), synced);
        log.flush().unwrap();
        assert_eq!(log.flushed_index(), Some(0));
    }
}

#[test]
fn replicas_that_began_at_different_places_roll_at_the_same_addresses() {
    let (whole, ..) = open(&MemoryDisk::default(), None).unwrap();
    append_flushed(&whole, 1, 50, 700);
    let (joined, ..) = open(&MemoryDisk::default(), None).unwrap();
    let position = whole.position_at(7).unwrap();
    joined
        .reset(position.id, position.end_physical, position.crc)
        .unwrap();
    append_flushed(&joined, 1, 42, 700);
    let bases = joined.segment_bases();
    assert!(bases.len() > 5);
    assert!(bases[1..].iter().all(|base| whole.is_segment_base(*base)));
    let from = position.end_physical;
    let len = (whole.max_physical() - from) as usize;
    assert_eq!(
        joined.read_bytes(from, len).unwrap(),
        whole.read_bytes(from, len).unwrap()
    );
}

#[test]
fn threads_on_a_real_disk_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = LogConfig {
        dir: dir.path().to_owned(),
        segment_bytes: 300_000,
        tail_bytes: 50_000,
        preallocate_bytes: 200_000,
        ..config()
    };
    let (log, mut flusher, mut preallocator, _) =
        CommitLog::open(Arc::new(RealDisk), config.clone(), None).unwrap();
    let threads =
        [
            std::thread::spawn(move || while flusher.run_once() != FlushOutcome::Stopped {}),
            std::thread::spawn(move || {
                while !matches!(preallocator.run_once(), PreallocOutcome::Stopped) {}
            }),
        ];
    let completed = Arc::new(AtomicU64::new(0));
    for index in 0..600u64 {
        let completed = completed.clone();
        let in_order = move |result: std::io::Result<()>| {
            result.unwrap();
            assert_eq!(completed.fetch_add(1, Ordering::Relaxed), index);
        };
        let payload = vec![index as u8; (index as usize * 37) % 9000];
        log.append(vec![entry(1, index, &payload)], Box::new(in_order))
            .unwrap();
        let read = log.read(index / 2, index + 1, 20_000).unwrap();
        assert_eq!(read[0].id.index, index / 2);
    }
    log.close();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert_eq!(completed.load(Ordering::Relaxed), 600);
    drop(log);
    let (log, _, _, report) = CommitLog::open(Arc::new(RealDisk), config, None).unwrap();
    assert_eq!((report.scanned_entries, report.cut), (600, None));
    for read in log.read(0, 600, u64::MAX).unwrap() {
        assert!(read.payload.iter().all(|byte| *byte == read.id.index as u8));
    }
}

#[test]
fn an_append_wakes_a_flusher_that_has_nothing_to_do() {
    let disk = MemoryDisk::default();
    let (log, mut flusher, ..) = open(&disk, None).unwrap();
    let thread = std::thread::spawn(move || while flusher.run_once() != FlushOutcome::Stopped {});
    for index in 0..3 {
        // It sleeps without a limit once the hints of the append before are written.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !(log.upkeep_due_in().is_none() && log.queue().idle) {
            assert!(std::time::Instant::now() < deadline, "it never rests");
            std::thread::yield_now();
        }
        let (told, tells) = std::sync::mpsc::channel();
        let done = Box::new(move |result: std::io::Result<()>| told.send(result).unwrap());
        log.append(vec![entry(1, index, b"wake up")], done).unwrap();
        let flushed = tells.recv_timeout(std::time::Duration::from_secs(20));
        flushed.expect("the flusher is woken").unwrap();
    }
    log.close();
    thread.join().unwrap();
}

#[test]
fn the_dump_of_a_small_log_never_changes() {
    let disk = MemoryDisk::default();
    let (log, ..) = open(&disk, None).unwrap();
    append_flushed(&log, 1, 2, 5);
    append_flushed(&log, 2, 1, 0);
    append_flushed(&log, 2, 1, 5000);
    disk.edit(&Path::new(DIR).join("00000000000000000202"), |bytes| {
        bytes[70] ^= 1
    });
    let text = dump(&disk, Path::new(DIR)).unwrap();
    assert_eq!(text, include_str!("../golden/dump.txt"));
}
