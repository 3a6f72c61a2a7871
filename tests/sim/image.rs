//! What a disk may hold after a crash, from the changes that it was asked for before.
//!
//! Content is durable when its file was synced, a name when its folder was. Of what is not durable,
//! a crash leaves everything (the process died, the machine did not), nothing, or some of it: of the
//! content any sectors, of the names of a folder the changes up to some point, as a journal keeps
//! them in order. Cutting a file is a change of its content here, and in order with its writes.

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

#[derive(Debug, Clone, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<Pending>,
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
    /// Takes in the next change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create(path, id) => {
                self.files.resize_with(*id + 1, File::default);
                self.pending_names.push(NameChange::Link(path.clone(), *id));
            }
            Change::Write(id, offset, bytes) => {
                self.files[*id]
                    .pending
                    .push(Pending::Write(*offset, bytes.clone()));
            }
            Change::SetLen(id, len) => self.files[*id].pending.push(Pending::SetLen(*len)),
            Change::Sync(id) => self.files[*id].sync(),
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
        let contents = self.files.iter().map(|file| file.kept(None)).collect();
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
                Crash::Kept | Crash::Torn { .. } => file.kept(
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
    fn sync(&mut self) {
        for change in self.pending.drain(..) {
            match change {
                Pending::Write(offset, bytes) => put(&mut self.durable, offset, &bytes),
                Pending::SetLen(len) => set_len(&mut self.durable, len),
            }
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
                (Pending::Write(offset, bytes), _) => put(&mut content, *offset, bytes),
                (Pending::SetLen(len), _) => set_len(&mut content, *len),
            }
        }
        content
    }

    /// Any sectors of the writes; cuts up to some point.
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
                        if random.once_in(2) {
                            put(&mut content, offset + from as u64, &bytes[from..to]);
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
