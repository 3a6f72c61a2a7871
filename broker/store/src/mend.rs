//! Owns damage that is found while the log is open: noted by the reads that meet it, located,
//! mended in place. Readers meanwhile see what their CRCs tell them.

use std::collections::BTreeSet;
use std::path::Path;

use crate::behind::{headers_behind, may_end_at};
use crate::commit_log::CommitLog;
use crate::disk::Disk;
use crate::error::StoreError;
use crate::identity::lock_folder;
use crate::range::RangeSource;
use crate::record::{HEADER_BYTES, Header, u32_at};
use crate::repair::{ANCHORS_MAX, Anchor, Damage, Layout, Mender};
use crate::segment::{Cursor, SCAN_BYTES, ScanStop, Segment, scan};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::vote::{Marks, VoteFile};

/// Damaged places remembered at a time; reads and the scrub find others again.
const NOTED_MAX: usize = 64;

/// Damage met by reads.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    places: Mutex<BTreeSet<u64>>,
    repairable: AtomicBool,
    gone_until: AtomicU64,
}

/// A damaged range of the open log.
#[derive(Debug)]
pub struct LiveDamage {
    /// What to fetch.
    pub damage: Damage,
    epoch: u64,
}

impl CommitLog {
    /// Takes note of a read that met damage.
    pub(crate) fn note_damage(&self, error: &StoreError) {
        if let StoreError::Corrupt {
            physical_offset, ..
        } = error
        {
            self.note_damaged(*physical_offset);
        }
    }

    /// Takes note of a damaged place.
    pub fn note_damaged(&self, physical: u64) {
        let mut places = self.noted.places.lock().expect("a panic ends the process");
        if places.len() < NOTED_MAX {
            places.insert(physical);
        }
    }

    /// The first place that was noted, which is forgotten.
    pub fn take_damaged(&self) -> Option<u64> {
        let mut places = self.noted.places.lock().expect("a panic ends the process");
        places.pop_first()
    }

    /// Says whether somebody mends what is noted: then a damaged entry is worth waiting for.
    pub fn set_repairable(&self, is_repairable: bool) {
        self.noted
            .repairable
            .store(is_repairable, Ordering::Relaxed);
    }

    /// Whether somebody mends what is noted.
    pub fn is_repairable(&self) -> bool {
        self.noted.repairable.load(Ordering::Relaxed)
    }

    /// Says that all peers have deleted what is damaged at this address, and so all of its segment,
    /// since replicas begin segments at the same addresses: nobody can mend it.
    pub fn note_gone(&self, physical: u64) {
        let next = (self.segment_bases().into_iter()).find(|base| *base > physical);
        let until = next.unwrap_or(physical + 1);
        self.noted.gone_until.fetch_max(until, Ordering::Relaxed);
    }

    /// Damage before this address stays until the log is purged up to there; 0 = there is none.
    pub fn gone_until(&self) -> u64 {
        self.noted.gone_until.load(Ordering::Relaxed)
    }

    /// The files of the log, for peers.
    pub fn range_source(&self) -> RangeSource {
        let bounds = (self.min_physical(), self.max_physical());
        RangeSource::new(self.disk_handle(), self.dir()).between(bounds.0, bounds.1)
    }

    /// Whether this node may not vote (S5).
    pub fn is_guarded(&self) -> bool {
        self.vote_file().marks().guarded
    }

    /// Keeps the node from voting, also after a restart; durable on return.
    pub fn begin_guard(&self) -> Result<(), StoreError> {
        self.set_guarded(true)
    }

    /// Lets the node vote again; durable on return.
    pub fn end_guard(&self) -> Result<(), StoreError> {
        self.set_guarded(false)
    }

    fn set_guarded(&self, guarded: bool) -> Result<(), StoreError> {
        let mut vote = self.vote_file();
        let marks = Marks {
            guarded,
            ..vote.marks()
        };
        let saved = vote.save_marks(marks);
        drop(vote);
        saved.inspect_err(|error| self.fail(&error.to_string()))
    }

    /// The first damaged range of the segment that holds an address; `None` when it is whole, or
    /// not on disk any more.
    pub fn locate_damage(&self, physical: u64) -> Result<Option<LiveDamage>, StoreError> {
        let epoch = self.cut_epoch();
        let Some((segment, end)) = self.part_on_disk(physical) else {
            return Ok(None);
        };
        let mut cursor = Cursor {
            physical: segment.base,
            crc: segment.previous_crc,
            next_index: Some(segment.first_index),
            last: None,
        };
        let mut reader = segment
            .reader(self.disk(), end.physical, SCAN_BYTES)?
            .around_bad_sectors();
        let reason = match scan(&mut reader, &mut cursor, end.physical, |_| ())? {
            ScanStop::End => return Ok(None),
            ScanStop::Zeros => "entries are missing",
            ScanStop::Damaged(reason) | ScanStop::Stale(reason) => reason,
        };
        let mut anchors = Vec::new();
        let bytes = reader.get(cursor.physical, HEADER_BYTES)?;
        if let Ok((header, crc)) = Header::decode(bytes)
            && header.physical_offset == cursor.physical
            && header.previous_crc == cursor.crc
            && may_end_at(
                segment.file(self.disk())?.as_ref(),
                header.end_physical() - segment.base,
            )
        {
            anchors.push(Anchor {
                physical: header.end_physical(),
                crc,
            });
        }
        let from = cursor.physical + 1;
        let headers = headers_behind(&mut reader, from, end.physical, ANCHORS_MAX)?;
        anchors.extend(headers.iter().map(|header| Anchor {
            physical: header.physical_offset,
            crc: header.previous_crc,
        }));
        anchors.push(end);
        if self.cut_epoch() != epoch {
            return Ok(None);
        }
        let damage = Damage {
            from: cursor,
            anchors,
            reason: reason.to_owned(),
            layout: Layout {
                dir: self.dir().to_owned(),
                segment_bytes: self.config().segment_bytes,
                files: vec![(segment.base, end.physical)],
            },
        };
        Ok(Some(LiveDamage { damage, epoch }))
    }

    /// The segment of an address and the end of what of it is not in memory: that is written, and
    /// what follows it is known.
    fn part_on_disk(&self, physical: u64) -> Option<(std::sync::Arc<Segment>, Anchor)> {
        let state = self.state();
        let after = (state.segments).partition_point(|segment| segment.base <= physical);
        let segment = state.segments.get(after.checked_sub(1)?)?.clone();
        let end = match state.segments.get(after) {
            Some(next) => Anchor {
                physical: next.base,
                crc: next.previous_crc,
            },
            None => match state.tail.first() {
                Some(first) => Anchor {
                    physical: first.entry.physical_offset,
                    crc: u32_at(&first.header, 52),
                },
                None => Anchor {
                    physical: state.end.physical,
                    crc: state.end.crc,
                },
            },
        };
        (segment.base < end.physical && segment.written() >= end.physical).then_some((segment, end))
    }

    /// Begins to gather bytes for a damaged range.
    pub fn mender(&self, found: &LiveDamage) -> Result<Mender, StoreError> {
        Mender::new(self.disk_handle(), found.damage.clone())
    }

    /// Writes a proven range; durable on return. False when the log was cut meanwhile.
    pub fn mend(&self, found: &LiveDamage, mender: &Mender) -> Result<bool, StoreError> {
        for piece in mender.pieces() {
            let Some((segment, _)) = self.part_on_disk(piece.base) else {
                return Ok(false);
            };
            let mut is_cut = false;
            mender.write_piece(*piece, |bytes, physical| {
                // One step at a time, so that the flusher waits for no more than that.
                let _io = self.io();
                is_cut |= self.cut_epoch() != found.epoch;
                if is_cut {
                    return Ok(());
                }
                let written = segment
                    .file(self.disk())?
                    .write_all_at(bytes, physical - segment.base);
                self.judge(&segment, written)
            })?;
            if is_cut {
                return Ok(false);
            }
            let synced = segment.file(self.disk())?.sync_data();
            self.judge(&segment, synced)?;
        }
        mender.remove_spool()?;
        Ok(true)
    }

    /// A failed write or sync of a segment is final, as everywhere (S4).
    fn judge(&self, segment: &Segment, result: std::io::Result<()>) -> Result<(), StoreError> {
        let result =
            result.map_err(|source| StoreError::io("repair segment", segment.path(), source));
        result.inspect_err(|error| self.fail(&error.to_string()))
    }
}

/// Lets the node of a stopped broker vote again although its log lacks what it may have acknowledged
/// (S5): the word of an operator. False when nothing kept it from voting.
///
/// # Errors
/// When the folder is in use or holds no log.
pub fn end_guard(disk: &dyn Disk, dir: &Path) -> Result<bool, StoreError> {
    let _lock = lock_folder(disk, dir)?;
    let mut vote = VoteFile::open(disk, dir, false)?;
    let marks = vote.marks();
    if marks.guarded {
        vote.save_marks(Marks {
            guarded: false,
            ..marks
        })?;
    }
    Ok(marks.guarded)
}

#[cfg(test)]
mod tests {
    use crate::log_tests::{append_flushed, open};
    use crate::test_disk::MemoryDisk;

    #[test]
    fn what_peers_have_deleted_is_gone_with_its_whole_segment() {
        let disk = MemoryDisk::default();
        let (log, ..) = open(&disk, None).unwrap();
        for _ in 0..12 {
            append_flushed(&log, 1, 1, 1000);
        }
        let bases = log.segment_bases();
        assert!(bases.len() > 2, "{bases:?}");
        assert_eq!(log.gone_until(), 0);
        log.note_gone(bases[1] + 500);
        assert_eq!(log.gone_until(), bases[2]);
        // What lies before is gone too.
        log.note_gone(100);
        assert_eq!(log.gone_until(), bases[2]);
        let newest = bases[bases.len() - 1] + 64;
        log.note_gone(newest);
        assert_eq!(log.gone_until(), newest + 1);
    }
}
