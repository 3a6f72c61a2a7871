//! Owns reading a log that did not open, damage by damage, so that each can be mended. It reads what
//! the start reads, from the newest checkpoint on. What is older was applied and keeps nobody out; it
//! is left to the scrub, all the more as peers may have deleted it.
//!
//! What is no damage: an end that was being written, which [`crate::CommitLog::open`] cuts. What
//! cannot be mended is an end behind which nothing is known any more although it was synced. It may
//! be cut all the same, if the node casts no vote until its log is complete again: first that is
//! noted durably (S5), then the watermark comes down, then files go, newest first. Damage before a
//! checkpoint is no lost end. If peers have purged it, the log begins at a checkpoint behind it.

use std::sync::Arc;

use crate::behind::{headers_behind, look_behind, may_end_at};
use crate::config::LogConfig;
use crate::cut::remove_if_there;
use crate::disk::{Disk, DiskLock};
use crate::error::StoreError;
use crate::identity::lock_folder;
use crate::position::LogPosition;
use crate::record::{HEADER_BYTES, Header};
use crate::repair::{ANCHORS_MAX, Anchor, Damage, Layout, Mender};
use crate::segment::{Cursor, SCAN_BYTES, ScanStop, Segment, base_of, file_name, scan};
use crate::vote::{Hints, Marks, VoteFile};

/// What a survey came to.
#[derive(Debug)]
pub enum Found {
    /// The end of the log.
    End,
    /// A range that peers can mend.
    Damage(Damage),
    /// An end that is gone although it was synced, and behind which nothing is left to go by.
    LostEnd {
        /// Address after the last whole entry.
        physical: u64,
        /// Address up to which entries are known to have been there.
        synced_physical: u64,
        /// What is wrong there.
        reason: String,
    },
}

/// Reads a log from its newest checkpoint on. Holds the folder.
#[derive(Debug)]
pub struct Survey {
    disk: Arc<dyn Disk>,
    config: LogConfig,
    vote: VoteFile,
    /// Bases with the lengths of their files.
    files: Vec<(u64, u64)>,
    cursor: Cursor,
    /// Where the newest checkpoint stands: entries up to there were applied here.
    checkpoint: Option<Anchor>,
    /// The end that was found lost, until something else was found.
    lost_physical: Option<u64>,
    _lock: Box<dyn DiskLock>,
}

impl Survey {
    /// Begins to read; `start` is what [`crate::CommitLog::open`] is given.
    pub fn begin(
        disk: Arc<dyn Disk>,
        config: LogConfig,
        start: Option<&LogPosition>,
    ) -> Result<Self, StoreError> {
        let lock = lock_folder(disk.as_ref(), &config.dir)?;
        let vote = VoteFile::open(disk.as_ref(), &config.dir, false)?;
        let cursor = beginning(&vote);
        let mut survey = Self {
            disk,
            config,
            vote,
            files: Vec::new(),
            cursor,
            checkpoint: start.map(|start| Anchor {
                physical: start.end_physical,
                crc: start.crc,
            }),
            lost_physical: None,
            _lock: lock,
        };
        survey.list()?;
        let begin_physical = survey.cursor.physical;
        let end_physical = survey.files.last().map_or(0, |(base, len)| base + len);
        // A log that ends before its checkpoint is damaged there, too.
        if let Some(start) = start
            && (begin_physical..=end_physical).contains(&start.end_physical)
        {
            survey.cursor = Cursor {
                physical: start.end_physical,
                crc: start.crc,
                next_index: Some(start.id.index + 1),
                last: Some(start.id),
            };
        }
        Ok(survey)
    }

    /// Reads the log from its beginning instead, for a start that a damaged older part keeps from
    /// opening: a file that is gone, or the first entry of one.
    #[must_use]
    pub fn of_all(mut self) -> Self {
        self.cursor = beginning(&self.vote);
        self
    }

    fn list(&mut self) -> Result<(), StoreError> {
        let dir = &self.config.dir;
        let names = self
            .disk
            .list(dir)
            .map_err(|source| StoreError::io("list", dir, source))?;
        let start = self.vote.marks().start_physical;
        self.files.clear();
        for base in names.iter().filter_map(|name| base_of(name)) {
            let path = dir.join(file_name(base));
            let io = |source| StoreError::io("open segment", &path, source);
            let len = self.disk.open(&path).map_err(io)?.len().map_err(io)?;
            if base >= start {
                self.files.push((base, len));
            }
        }
        Ok(())
    }

    /// Reads on to the next damage.
    pub fn next_damage(&mut self) -> Result<Found, StoreError> {
        loop {
            let physical = self.cursor.physical;
            self.lost_physical = None;
            let after = self.files.partition_point(|(base, _)| *base <= physical);
            let Some(at) = after.checked_sub(1) else {
                if self.files.is_empty() && physical >= self.known_physical() {
                    return Ok(Found::End);
                }
                return self.damaged("the first segment is missing");
            };
            let (base, len) = self.files[at];
            let file_end = base.saturating_add(len);
            let next = self.files.get(at + 1).map(|(base, _)| *base);
            let end = next.map_or(file_end, |next| next.min(file_end));
            let stop = if physical >= end {
                ScanStop::End
            } else {
                let segment = self.segment(base);
                let mut reader = segment
                    .reader(self.disk.as_ref(), end, SCAN_BYTES)?
                    .around_bad_sectors();
                scan(&mut reader, &mut self.cursor, end, |_| ())?
            };
            let reason = match stop {
                ScanStop::End if next == Some(self.cursor.physical) => continue,
                ScanStop::End => "the file is cut short",
                ScanStop::Zeros => "entries are missing",
                ScanStop::Damaged(reason) | ScanStop::Stale(reason) => reason,
            };
            if next.is_none() && self.may_end_here(base, file_end)? {
                return Ok(Found::End);
            }
            return self.damaged(reason);
        }
    }

    /// Whether the log ends at the cursor, or with an end there that was never synced.
    fn may_end_here(&self, base: u64, file_end: u64) -> Result<bool, StoreError> {
        let physical = self.cursor.physical;
        if physical < self.known_physical() {
            return Ok(false);
        }
        let unsynced_bytes_max = self.vote.hints().unsynced_bytes_max;
        let segment = self.segment(base);
        let mut reader = segment
            .reader(self.disk.as_ref(), file_end, SCAN_BYTES)?
            .around_bad_sectors();
        let behind = look_behind(&mut reader, physical, file_end)?;
        let unsynced = if unsynced_bytes_max == 0 {
            self.config.unsynced_bytes_max()
        } else {
            unsynced_bytes_max
        };
        let far = physical.saturating_add(unsynced);
        Ok(behind.last_header.is_none_or(|valid| valid < far))
    }

    /// Address up to which entries are known to have been there.
    fn known_physical(&self) -> u64 {
        let checkpoint = self.checkpoint.map_or(0, |anchor| anchor.physical);
        self.vote.hints().synced_physical.max(checkpoint)
    }

    fn segment(&self, base: u64) -> Segment {
        Segment::new(&self.config.dir, base, 0, 0)
    }

    fn damaged(&mut self, reason: &str) -> Result<Found, StoreError> {
        let anchors = self.anchors()?;
        let physical = self.cursor.physical;
        if anchors.is_empty() {
            self.lost_physical = Some(physical);
            return Ok(Found::LostEnd {
                physical,
                synced_physical: self.vote.hints().synced_physical,
                reason: reason.to_owned(),
            });
        }
        let next_bases = self.files.iter().skip(1).map(|(base, _)| *base);
        let next_bases = next_bases.chain([u64::MAX]);
        let files = self.files.iter().zip(next_bases);
        let files = files.map(|((base, len), next)| (*base, base.saturating_add(*len).min(next)));
        Ok(Found::Damage(Damage {
            from: self.cursor.clone(),
            anchors,
            reason: reason.to_owned(),
            layout: Layout {
                dir: self.config.dir.clone(),
                segment_bytes: self.config.segment_bytes.max(4096),
                files: files.collect(),
            },
        }))
    }

    /// Places behind the cursor where the log goes on.
    fn anchors(&self) -> Result<Vec<Anchor>, StoreError> {
        let physical = self.cursor.physical;
        let mut anchors = Vec::new();
        for (at, (base, len)) in self.files.iter().enumerate() {
            let file_end = base.saturating_add(*len);
            let end = self.files.get(at + 1).map_or(file_end, |next| next.0);
            if end <= physical {
                continue;
            }
            let segment = self.segment(*base);
            let end = end.min(file_end);
            let mut reader = segment
                .reader(self.disk.as_ref(), end, SCAN_BYTES)?
                .around_bad_sectors();
            if *base <= physical {
                let file = segment.file(self.disk.as_ref())?.as_ref();
                let own_end = self.end_of_damaged_payload(&mut reader)?;
                anchors.extend(own_end.filter(|own| may_end_at(file, own.physical - base)));
            }
            let from = (physical + 1).max(*base);
            let left = ANCHORS_MAX.saturating_sub(anchors.len());
            let headers = headers_behind(&mut reader, from, end, left)?;
            anchors.extend(headers.iter().map(|header| Anchor {
                physical: header.physical_offset,
                crc: header.previous_crc,
            }));
        }
        anchors.extend(self.checkpoint.filter(|anchor| anchor.physical > physical));
        anchors.sort_by_key(|anchor| anchor.physical);
        Ok(anchors)
    }

    /// A whole header at the cursor says what the payload must be: the anchor is behind it.
    fn end_of_damaged_payload(
        &self,
        reader: &mut crate::segment::ChunkReader<'_>,
    ) -> Result<Option<Anchor>, StoreError> {
        let bytes = reader.get(self.cursor.physical, HEADER_BYTES)?;
        let Ok((header, crc)) = Header::decode(bytes) else {
            return Ok(None);
        };
        let is_here = header.physical_offset == self.cursor.physical
            && header.previous_crc == self.cursor.crc;
        Ok(is_here.then_some(Anchor {
            physical: header.end_physical(),
            crc,
        }))
    }

    /// Writes a proven range; durable on return. The next step reads it again.
    pub fn mend(&mut self, mender: &Mender) -> Result<(), StoreError> {
        mender.write()?;
        self.list()
    }

    /// Lets the log begin at a position behind the damage that was found: the end of an entry at
    /// which a whole checkpoint stands, so what lies before is not needed any more. What lies behind
    /// it stays. Durable on return; a log that begins there already, or later, is left as it is.
    /// Files go when the log is opened.
    pub fn begin_at(&mut self, position: &LogPosition) -> Result<(), StoreError> {
        let marks = self.vote.marks();
        let is_forward = position.end_physical > marks.start_physical
            && marks
                .purged
                .is_none_or(|purged| purged.index < position.id.index);
        if is_forward {
            if self.went_another_way(position)? {
                // None of it can ever be committed, so nobody waits for this node's word on it.
                let hints = self.vote.hints();
                let synced_physical = hints.synced_physical.min(position.end_physical);
                self.vote.save_hints(Hints {
                    synced_physical,
                    ..hints
                })?;
                self.remove_from(position.end_physical)?;
            }
            self.vote.save_marks(Marks {
                purged: Some(position.id),
                start_physical: position.end_physical,
                start_crc: position.crc,
                ..marks
            })?;
        }
        if position.end_physical > self.cursor.physical {
            self.cursor = Cursor {
                physical: position.end_physical,
                crc: position.crc,
                next_index: Some(position.id.index + 1),
                last: Some(position.id),
            };
        }
        self.list()
    }

    /// Whether what stands here behind a committed position follows another entry.
    fn went_another_way(&self, position: &LogPosition) -> Result<bool, StoreError> {
        let base = position.end_physical;
        if !self.files.iter().any(|(found, _)| *found == base) {
            return Ok(false);
        }
        let segment = self.segment(base);
        let reader = segment.reader(self.disk.as_ref(), u64::MAX, HEADER_BYTES)?;
        let mut reader = reader.around_bad_sectors();
        let header = Header::decode(reader.get(base, HEADER_BYTES)?);
        Ok(header.is_ok_and(|(header, _)| {
            header.physical_offset == base && header.previous_crc != position.crc
        }))
    }

    /// Removes the files that begin at an address or behind it.
    fn remove_from(&self, physical: u64) -> Result<(), StoreError> {
        let dir = &self.config.dir;
        let files = self.files.iter().rev();
        // Newest first, each durable before the next: never a gap.
        for (base, _) in files.take_while(|(base, _)| *base >= physical) {
            remove_if_there(self.disk.as_ref(), &dir.join(file_name(*base)))?;
            self.disk
                .sync_dir(dir)
                .map_err(|source| StoreError::io("sync", dir, source))?;
        }
        Ok(())
    }

    /// Gives a lost end up, see [`Found::LostEnd`]; [`crate::CommitLog::open`] cuts it then. Nothing
    /// else is ever given up: what follows damage may have been acknowledged.
    pub fn give_end_up(&mut self) -> Result<(), StoreError> {
        let physical = self.cursor.physical;
        if self.lost_physical.take() != Some(physical) {
            let what = format!("physical offset {physical} is not found to be a lost end");
            return Err(StoreError::Failed(what));
        }
        self.vote.save_marks(Marks {
            guarded: true,
            ..self.vote.marks()
        })?;
        let hints = self.vote.hints();
        self.vote.save_hints(Hints {
            synced_physical: hints.synced_physical.min(physical),
            ..hints
        })?;
        // The file in which it begins keeps what is before it.
        self.remove_from(physical + 1)?;
        self.cut_file()?;
        self.list()
    }

    /// Ends the file that holds the cursor there: whole entries may stand behind a damaged one.
    fn cut_file(&self) -> Result<(), StoreError> {
        let physical = self.cursor.physical;
        let holds = |(base, len): &&(u64, u64)| (*base..base + len).contains(&physical);
        let Some((base, _)) = self.files.iter().find(holds) else {
            return Ok(());
        };
        let path = self.config.dir.join(file_name(*base));
        let io = |source| StoreError::io("cut segment", &path, source);
        let file = self.disk.open(&path).map_err(io)?;
        file.set_len(physical - base).map_err(io)?;
        file.sync_data().map_err(io)
    }
}

/// Where the log begins.
fn beginning(vote: &VoteFile) -> Cursor {
    let marks = vote.marks();
    Cursor {
        physical: marks.start_physical,
        crc: marks.start_crc,
        // The log may begin before the purged entry, by up to a segment.
        next_index: marks.purged.is_none().then_some(0),
        last: None,
    }
}
