//! What a disk may hold after a crash, from the changes that it was asked for before.
//!
//! Content is durable when its file was synced, a name when its folder was. Of what is not durable,
//! a crash leaves everything (the process died, the machine did not), nothing, or some of it: of the
//! content any sectors, some of them torn, of the names the changes up to some point, as a journal
//! keeps them in order. Cutting a file is a change of its content here, and in order with its writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{Change, FileId, SimDisk, put, set_len};
use super::random::Random;

/// What a disk writes as a whole or not at all. Unit: bytes.
pub const SECTOR_BYTES: usize = 512;

#[derive(Debug, Clone)]
enum Pending {
    Write(u64, Arc<[u8]>),
    SetLen(u64),
}

impl Pending {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, bytes) => put(content, *offset, bytes),
            Self::SetLen(len) => set_len(content, *len),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    /// What programs read, once a sync has failed: more than the rest will ever bring to the disk.
    visible: Option<Vec<u8>>,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(PathBuf, FileId),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf),
}

type Names = BTreeMap<PathBuf, FileId>;

impl NameChange {
    fn folder(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Unlink(path) | Self::Rename(path, _) => path.parent(),
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(path, id) => {
                names.insert(path.clone(), *id);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::Rename(from, to) => {
                if let Some(id) = names.remove(from) {
                    names.insert(to.clone(), id);
                }
            }
        }
    }
}

/// A disk as it stands after some changes: what is durable, and what is not yet.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    files: Vec<File>,
    durable_names: Names,
    pending_names: Vec<NameChange>,
}

/// How much of what is not durable a crash leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All of it.
    Kept,
    /// Nothing.
    Lost,
    /// All, but of the last change, a write, only the sectors before or from this one on.
    Torn {
        /// Sector of the write, counted from its first.
        at: usize,
        /// Whether the sectors from there on are what is left.
        end: bool,
    },
    /// Some of it, as this seed decides.
    Some(u64),
}

impl Standing {
    /// A disk with these files, all of it durable, and how it stands. It writes down its changes.
    pub fn settled(files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) -> (SimDisk, Self) {
        let mut standing = Self::default();
        for (path, durable) in files {
            standing.durable_names.insert(path, standing.files.len());
            standing.files.push(File {
                durable,
                ..File::default()
            });
        }
        (standing.resume().0, standing)
    }

    /// Takes in the next change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path, id) => {
                self.files.resize_with(*id + 1, File::default);
                self.pending_names.push(NameChange::Link(path.clone(), *id));
            }
            Change::Write(id, offset, bytes) => {
                self.files[*id].change(Pending::Write(*offset, bytes.clone()));
            }
            Change::SetLen(id, len) => self.files[*id].change(Pending::SetLen(*len)),
            Change::Sync(id) => self.files[*id].sync(),
            Change::SyncFailed(id) => self.files[*id].give_up(),
            Change::Flip(id, offset, mask) => self.files[*id].flip(*offset, *mask),
            Change::Remove(path) => self.pending_names.push(NameChange::Unlink(path.clone())),
            Change::Rename(from, to) => {
                let change = NameChange::Rename(from.clone(), to.clone());
                self.pending_names.push(change);
            }
            Change::SyncDir(dir) => {
                let mut left = Vec::new();
                for change in self.pending_names.drain(..) {
                    if change.folder() == Some(dir) {
                        change.apply(&mut self.durable_names);
                    } else {
                        left.push(change);
                    }
                }
                self.pending_names = left;
                self.forget_unnamed();
            }
        }
    }

    /// A file that no name can bring back takes no more memory.
    fn forget_unnamed(&mut self) {
        let mut named = vec![false; self.files.len()];
        for id in self.durable_names.values() {
            named[*id] = true;
        }
        for change in &self.pending_names {
            if let NameChange::Link(_, id) = change {
                named[*id] = true;
            }
        }
        for (file, named) in self.files.iter_mut().zip(named) {
            // A file that is still open may be written; nobody will ever see it.
            if !named && !file.durable.is_empty() {
                *file = File::default();
            }
        }
    }

    /// The disk as a new process finds it when only the old process died: with what is not durable
    /// yet. Its changes continue a copy of this.
    pub fn resume(&self) -> (SimDisk, Self) {
        let mut names = self.durable_names.clone();
        for change in &self.pending_names {
            change.apply(&mut names);
        }
        let contents = self.files.iter().map(File::read).collect();
        (SimDisk::resumed(names, contents), self.clone())
    }

    /// The disk that a crash leaves now. `last` is the change that was made last.
    pub fn after(&self, crash: Crash, last: &Change) -> SimDisk {
        let mut random = Random::new(match crash {
            Crash::Some(seed) => seed,
            Crash::Kept | Crash::Lost | Crash::Torn { .. } => 0,
        });
        let kept_names = match crash {
            Crash::Lost => 0,
            Crash::Some(_) => random.below(self.pending_names.len() as u64 + 1) as usize,
            Crash::Kept | Crash::Torn { .. } => self.pending_names.len(),
        };
        let mut names = self.durable_names.clone();
        for change in &self.pending_names[..kept_names] {
            change.apply(&mut names);
        }
        let torn = match (crash, last) {
            (Crash::Torn { at, end }, Change::Write(id, ..)) => Some((*id, at, end)),
            _ => None,
        };
        let files = names.into_iter().map(|(path, id)| {
            let file = &self.files[id];
            let content = match crash {
                Crash::Lost => file.durable.clone(),
                Crash::Some(_) => file.some(&mut random),
                Crash::Kept => file.read(),
                Crash::Torn { .. } => file.kept(
                    torn.filter(|(torn, ..)| *torn == id)
                        .map(|(_, at, end)| (at, end)),
                ),
            };
            (path, content)
        });
        SimDisk::of_files(files.collect::<Vec<_>>())
    }
}

impl File {
    fn change(&mut self, change: Pending) {
        if let Some(visible) = &mut self.visible {
            change.apply(visible);
        }
        self.pending.push(change);
    }

    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// A sync failed: written pages are lost. A cut is not content but a matter of the journal.
    fn give_up(&mut self) {
        self.visible = Some(self.read());
        self.pending
            .retain(|change| matches!(change, Pending::SetLen(_)));
    }

    /// What programs read.
    fn read(&self) -> Vec<u8> {
        let visible = self.visible.clone();
        visible.unwrap_or_else(|| self.kept(None))
    }

    /// Turns bits over in what a program reads at this offset.
    fn flip(&mut self, offset: u64, mask: u8) {
        let at = offset as usize;
        if let Some(byte) = self.visible.as_mut().and_then(|bytes| bytes.get_mut(at)) {
            *byte ^= mask;
        }
        for change in self.pending.iter_mut().rev() {
            let Pending::Write(start, bytes) = change else {
                continue;
            };
            let within = offset.checked_sub(*start).map(|at| at as usize);
            if let Some(within) = within.filter(|within| *within < bytes.len()) {
                let mut flipped = bytes.to_vec();
                flipped[within] ^= mask;
                *bytes = flipped.into();
                return;
            }
        }
        if let Some(byte) = self.durable.get_mut(at) {
            *byte ^= mask;
        }
    }

    /// Everything, but the last write torn.
    fn kept(&self, torn: Option<(usize, bool)>) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (number, change) in self.pending.iter().enumerate() {
            match (change, torn) {
                (Pending::Write(offset, bytes), Some((at, end)))
                    if number + 1 == self.pending.len() =>
                {
                    let cut = sector_start(*offset, at).min(bytes.len());
                    if end {
                        put(&mut content, offset + cut as u64, &bytes[cut..]);
                    } else {
                        put(&mut content, *offset, &bytes[..cut]);
                    }
                }
                (change, _) => change.apply(&mut content),
            }
        }
        content
    }

    /// Any sectors of the writes, each whole, not at all or torn; cuts up to some point.
    fn some(&self, random: &mut Random) -> Vec<u8> {
        let mut content = self.durable.clone();
        let reached = random.below(self.pending.len() as u64 + 1) as usize;
        for (number, change) in self.pending.iter().enumerate() {
            match change {
                Pending::Write(offset, bytes) => {
                    let mut from = 0;
                    let mut sector = 1;
                    while from < bytes.len() {
                        let to = sector_start(*offset, sector).min(bytes.len());
                        let kept = match random.below(8) {
                            0..=3 => from..to,
                            4..=6 => from..from,
                            _ => {
                                let at = from + random.below((to - from) as u64) as usize;
                                if random.once_in(2) { from..at } else { at..to }
                            }
                        };
                        if !kept.is_empty() {
                            put(&mut content, offset + kept.start as u64, &bytes[kept]);
                        }
                        from = to;
                        sector += 1;
                    }
                }
                Pending::SetLen(len) if number < reached => set_len(&mut content, *len),
                Pending::SetLen(_) => break,
            }
        }
        content
    }
}

/// Where the sector with this number begins within a write at `offset`.
fn sector_start(offset: u64, number: usize) -> usize {
    let into = (offset % SECTOR_BYTES as u64) as usize;
    (number * SECTOR_BYTES).saturating_sub(into)
}

/// How many sectors a write touches.
pub fn sectors(offset: u64, bytes: usize) -> usize {
    let into = (offset % SECTOR_BYTES as u64) as usize;
    (into + bytes).div_ceil(SECTOR_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::faults::{Operation, Rule};
    use raftmq_store::Disk;

    const FILE: &str = "/a/file";

    fn standing(disk: &SimDisk) -> Standing {
        let mut standing = Standing::default();
        for change in disk.changes() {
            standing.apply(&change);
        }
        standing
    }

    fn read(disk: &SimDisk) -> Vec<u8> {
        let file = disk.open(Path::new(FILE)).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    fn left(disk: &SimDisk, crash: Crash) -> Vec<u8> {
        read(&standing(disk).after(crash, &Change::SyncDir(PathBuf::new())))
    }

    #[test]
    fn what_a_failed_sync_gave_up_is_read_until_the_power_goes_and_no_later_sync_saves_it() {
        let disk = SimDisk::recording();
        let file = disk.create(Path::new(FILE)).unwrap();
        disk.sync_dir(Path::new("/a")).unwrap();
        file.write_all_at(b"old old", 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(b"new", 0).unwrap();
        disk.fail(Rule::next(Operation::Sync));
        file.sync_data().unwrap_err();
        file.write_all_at(b"X", 6).unwrap();
        file.sync_data().unwrap();
        assert_eq!(read(&disk), b"new olX");
        assert_eq!(left(&disk, Crash::Kept), b"new olX");
        assert_eq!(left(&disk, Crash::Lost), b"old olX");
        file.write_all_at(b"new", 0).unwrap();
        file.sync_data().unwrap();
        assert_eq!(left(&disk, Crash::Lost), b"new olX");
    }

    #[test]
    fn a_file_made_again_is_the_old_one_until_its_new_content_is_synced() {
        let disk = SimDisk::recording();
        let file = disk.create(Path::new(FILE)).unwrap();
        file.write_all_at(b"old", 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("/a")).unwrap();
        let again = disk.create(Path::new(FILE)).unwrap();
        again.write_all_at(b"n", 0).unwrap();
        assert_eq!(left(&disk, Crash::Lost), b"old");
        again.sync_data().unwrap();
        assert_eq!(left(&disk, Crash::Lost), b"n");
    }

    #[test]
    fn a_crash_leaves_nothing_but_old_and_new_bytes_of_each_sector_and_sometimes_all_of_them() {
        let disk = SimDisk::recording();
        let file = disk.create(Path::new(FILE)).unwrap();
        disk.sync_dir(Path::new("/a")).unwrap();
        file.write_all_at(&[1; 3 * SECTOR_BYTES], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[2; 3 * SECTOR_BYTES], 0).unwrap();
        let standing = standing(&disk);
        let (mut whole, mut mixed, mut torn) = (0, 0, 0);
        for seed in 0..500 {
            let content =
                read(&standing.after(Crash::Some(seed), &Change::SyncDir(PathBuf::new())));
            assert_eq!(content.len(), 3 * SECTOR_BYTES);
            assert!(content.iter().all(|byte| [1, 2].contains(byte)));
            let mut sectors = content.chunks(SECTOR_BYTES);
            let is_torn = |sector: &[u8]| sector.iter().any(|byte| *byte != sector[0]);
            torn += u32::from(sectors.any(is_torn));
            whole += u32::from(content.iter().all(|byte| *byte == 2));
            mixed += u32::from(content[0] != content[3 * SECTOR_BYTES - 1]);
        }
        assert!(whole > 0 && mixed > 0 && torn > 0, "{whole} {mixed} {torn}");
    }
}
