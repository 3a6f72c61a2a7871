//! A disk in memory that writes down every change it is asked for, and fails when it is told to.
//!
//! The list of changes ([`Change`]) is what a crash is made from: see `image.rs`. What can go wrong
//! without a crash is in `faults.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use raftmq_store::{Disk, DiskFile, DiskLock, DiskSpace};

use super::faults::{Faults, Operation, Rule};

/// Number of a file, whatever its name is at the moment.
pub type FileId = usize;

/// One thing the disk was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A name for a new, empty file.
    Create(PathBuf, FileId),
    /// Bytes at an offset.
    Write(FileId, u64, Arc<[u8]>),
    /// Another length.
    SetLen(FileId, u64),
    /// The content of a file shall be durable.
    Sync(FileId),
    /// A sync of the content failed. What was not durable never will be, though it can still be read
    /// until the machine crashes: Linux takes the pages for written.
    SyncFailed(FileId),
    /// A bit turned over where the content lies.
    Flip(FileId, u64, u8),
    /// A name goes.
    Remove(PathBuf),
    /// A name becomes another.
    Rename(PathBuf, PathBuf),
    /// The names of a folder shall be durable.
    SyncDir(PathBuf),
}

/// Space of a disk without a quota, which is never used up. Unit: bytes.
const SPACE_BYTES: u64 = 1 << 40;

/// A disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    names: BTreeMap<PathBuf, FileId>,
    contents: Vec<Vec<u8>>,
    /// The last name of each file.
    paths: Vec<PathBuf>,
    locks: BTreeSet<PathBuf>,
    changes: Option<Vec<Change>>,
    faults: Faults,
}

impl Inner {
    fn note(&mut self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }

    /// Whether an operation on a file goes well.
    fn attempt(&mut self, operation: Operation, id: FileId) -> io::Result<()> {
        self.faults.attempt(operation, &self.paths[id])
    }

    fn used_bytes(&self) -> u64 {
        let lengths = self.names.values().map(|id| self.contents[*id].len());
        lengths.sum::<usize>() as u64
    }

    fn available_bytes(&self) -> u64 {
        let quota = self.faults.quota_bytes.unwrap_or(SPACE_BYTES);
        quota.saturating_sub(self.used_bytes())
    }

    /// How far a file may grow that shall end at `end`.
    fn end_that_fits(&self, id: FileId, end: u64) -> u64 {
        let now = self.contents[id].len() as u64;
        if end <= now || self.faults.quota_bytes.is_none() {
            return end;
        }
        end.min(now + self.available_bytes())
    }
}

impl SimDisk {
    /// An empty disk that writes down its changes.
    pub fn recording() -> Self {
        let disk = Self::default();
        disk.lock_inner().changes = Some(Vec::new());
        disk
    }

    /// A disk with these files, all of it durable.
    pub fn of_files(files: impl IntoIterator<Item = (PathBuf, Vec<u8>)>) -> Self {
        let disk = Self::default();
        let mut inner = disk.lock_inner();
        for (path, content) in files {
            let id = inner.contents.len();
            inner.contents.push(content);
            inner.paths.push(path.clone());
            inner.names.insert(path, id);
        }
        drop(inner);
        disk
    }

    /// A disk with these names and contents, by file number, that writes down its changes.
    pub(super) fn resumed(names: BTreeMap<PathBuf, FileId>, contents: Vec<Vec<u8>>) -> Self {
        let disk = Self::recording();
        let mut inner = disk.lock_inner();
        inner.paths = vec![PathBuf::new(); contents.len()];
        for (path, id) in &names {
            inner.paths[*id].clone_from(path);
        }
        inner.names = names;
        inner.contents = contents;
        drop(inner);
        disk
    }

    /// How many changes were asked for so far.
    pub fn changes_count(&self) -> usize {
        self.lock_inner().changes.as_ref().map_or(0, Vec::len)
    }

    /// Every change so far.
    pub fn changes(&self) -> Vec<Change> {
        self.lock_inner().changes.clone().unwrap_or_default()
    }

    /// Every change since the last call.
    pub fn take_changes(&self) -> Vec<Change> {
        let mut inner = self.lock_inner();
        inner
            .changes
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Every file by its name, as programs see it.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let inner = self.lock_inner();
        let named = inner.names.iter();
        named
            .map(|(path, id)| (path.clone(), inner.contents[*id].clone()))
            .collect()
    }

    /// Bytes of all files that have a name.
    pub fn used_bytes(&self) -> u64 {
        self.lock_inner().used_bytes()
    }

    /// Lets some operations fail; each rule counts for itself.
    pub fn fail(&self, rule: Rule) {
        self.lock_inner().faults.add(rule);
    }

    /// Lets everything go well again, and as much be stored as is wanted.
    pub fn clear_faults(&self) {
        self.lock_inner().faults.clear();
    }

    /// How many operations have failed, for want of space or by a rule.
    pub fn failures(&self) -> u64 {
        self.lock_inner().faults.failures()
    }

    /// Lets all files together take this many bytes; `None` = as many as they want.
    pub fn set_quota(&self, bytes: Option<u64>) {
        self.lock_inner().faults.quota_bytes = bytes;
    }

    /// Lets syncs of files whose path contains `path` do nothing, without a word, until the machine
    /// starts again.
    pub fn lie(&self, path: &str) {
        self.lock_inner().faults.lies = Some(path.to_owned());
    }

    /// Lets the next write to a path that contains `path` go to this offset of its file instead,
    /// without a word.
    pub fn misdirect_next_write(&self, path: &str, offset: u64) {
        self.lock_inner().faults.misdirect(path, offset);
    }

    /// Turns one bit over where it lies; false when the file has no such byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut inner = self.lock_inner();
        let Some(id) = inner.names.get(path).copied() else {
            return false;
        };
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let mask = 1 << (bit % 8);
        let Some(byte) = inner.contents[id].get_mut(at) else {
            return false;
        };
        *byte ^= mask;
        inner.note(|| Change::Flip(id, offset, mask));
        true
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("a panic ends the test")
    }

    fn file(&self, id: FileId) -> Arc<dyn DiskFile> {
        Arc::new(SimFile {
            disk: self.clone(),
            id,
        })
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Write, path)?;
        if let Some(id) = inner.names.get(path).copied() {
            // It stays the same file, which loses its content.
            inner.contents[id].clear();
            inner.note(|| Change::SetLen(id, 0));
            drop(inner);
            return Ok(self.file(id));
        }
        let id = inner.contents.len();
        inner.contents.push(Vec::new());
        inner.paths.push(path.to_owned());
        inner.names.insert(path.to_owned(), id);
        inner.note(|| Change::Create(path.to_owned(), id));
        drop(inner);
        Ok(self.file(id))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Read, path)?;
        let id = *inner.names.get(path).ok_or_else(missing)?;
        drop(inner);
        Ok(self.file(id))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.lock_inner().names.contains_key(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Read, dir)?;
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Write, path)?;
        inner.names.remove(path).ok_or_else(missing)?;
        inner.note(|| Change::Remove(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Write, to)?;
        let id = inner.names.remove(from).ok_or_else(missing)?;
        inner.names.insert(to.to_owned(), id);
        inner.paths[id] = to.to_owned();
        inner.note(|| Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        // Folders are made once, before anything is in them; they are always there here.
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.faults.attempt(Operation::Sync, dir)?;
        inner.note(|| Change::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        let inner = self.lock_inner();
        Ok(DiskSpace {
            used_bytes: inner.used_bytes(),
            available_bytes: inner.available_bytes(),
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        if !self.lock_inner().locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_owned(),
        }))
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: FileId,
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.disk.lock_inner();
        inner.attempt(Operation::Read, self.id)?;
        let content = &inner.contents[self.id];
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len());
        let read = buf.len().min(content.len() - from);
        buf[..read].copy_from_slice(&content[from..from + read]);
        Ok(read)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut inner = self.disk.lock_inner();
        // A write that fails has still begun: some of it may be there.
        let (bytes, result) = match inner.attempt(Operation::Write, self.id) {
            Err(error) => (buf.len() / 2, Err(error)),
            Ok(()) => {
                let end = inner.end_that_fits(self.id, offset + buf.len() as u64);
                let bytes = usize::try_from(end.saturating_sub(offset)).unwrap_or(buf.len());
                let fits = (bytes == buf.len()).then_some(());
                (bytes, fits.ok_or_else(|| inner.faults.out_of_space()))
            }
        };
        if bytes > 0 || result.is_ok() {
            let Inner { faults, paths, .. } = &mut *inner;
            let offset = faults.place(&paths[self.id], offset);
            put(&mut inner.contents[self.id], offset, &buf[..bytes]);
            inner.note(|| Change::Write(self.id, offset, buf[..bytes].into()));
        }
        result
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut inner = self.disk.lock_inner();
        if inner.faults.lies_about(&inner.paths[self.id]) {
            return Ok(());
        }
        let result = inner.attempt(Operation::Sync, self.id);
        inner.note(|| match result {
            Ok(()) => Change::Sync(self.id),
            Err(_) => Change::SyncFailed(self.id),
        });
        result
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock_inner().contents[self.id].len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock_inner();
        inner.attempt(Operation::Write, self.id)?;
        if inner.end_that_fits(self.id, len) < len {
            return Err(inner.faults.out_of_space());
        }
        set_len(&mut inner.contents[self.id], len);
        inner.note(|| Change::SetLen(self.id, len));
        Ok(())
    }
}

/// Writes into a content, which grows when needed.
pub(super) fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let from = usize::try_from(offset).expect("files here are small");
    let end = from + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[from..end].copy_from_slice(bytes);
}

/// Cuts a content, or extends it with zeros.
pub(super) fn set_len(content: &mut Vec<u8>, len: u64) {
    content.resize(usize::try_from(len).expect("files here are small"), 0);
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.lock_inner().locks.remove(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "/a/file";

    fn read(disk: &SimDisk) -> Vec<u8> {
        let file = disk.open(Path::new(FILE)).unwrap();
        let mut content = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        content
    }

    #[test]
    fn a_rule_counts_what_goes_well_and_what_fails_and_leaves_other_files_alone() {
        let disk = SimDisk::default();
        let file = disk.create(Path::new(FILE)).unwrap();
        let other = disk.create(Path::new("/a/other")).unwrap();
        disk.fail(Rule {
            operation: Operation::Write,
            path: "file".to_owned(),
            after: 1,
            times: 2,
        });
        let results: Vec<bool> = (0..5)
            .map(|_| file.write_all_at(b"1234", 0).is_ok())
            .collect();
        assert_eq!(results, [true, false, false, true, true]);
        assert!(other.write_all_at(b"1", 0).is_ok());
        disk.fail(Rule::next(Operation::Read));
        assert!(file.read_at(&mut [0; 4], 0).is_err());
        assert_eq!((read(&disk), disk.failures()), (b"1234".to_vec(), 3));
    }

    #[test]
    fn a_disk_that_lies_makes_nothing_durable_and_fails_nothing() {
        let disk = SimDisk::recording();
        let file = disk.create(Path::new(FILE)).unwrap();
        disk.lie("file");
        file.write_all_at(b"1234", 0).unwrap();
        file.sync_data().unwrap();
        assert!(!disk.changes().contains(&Change::Sync(0)));
        disk.clear_faults();
        file.sync_data().unwrap();
        assert!(disk.changes().contains(&Change::Sync(0)));
        assert_eq!(disk.failures(), 0);
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_overwrites_go_on() {
        let disk = SimDisk::default();
        let file = disk.create(Path::new(FILE)).unwrap();
        disk.set_quota(Some(6));
        file.write_all_at(b"1234", 0).unwrap();
        let full = file.write_all_at(b"5678", 4).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(read(&disk), b"123456");
        assert!(file.set_len(7).is_err());
        file.write_all_at(b"654321", 0).unwrap();
        assert_eq!(disk.space(Path::new("/a")).unwrap().available_bytes, 0);
        disk.set_quota(None);
        file.set_len(7).unwrap();
    }

    #[test]
    fn a_misdirected_write_and_a_flipped_bit_say_nothing() {
        let disk = SimDisk::default();
        let file = disk.create(Path::new(FILE)).unwrap();
        file.write_all_at(b"123456", 0).unwrap();
        disk.misdirect_next_write("file", 3);
        file.write_all_at(b"ab", 0).unwrap();
        file.write_all_at(b"c", 0).unwrap();
        assert_eq!(read(&disk), b"c23ab6");
        assert!(disk.flip_bit(Path::new(FILE), 1, 0));
        assert_eq!(read(&disk), b"c33ab6");
        assert!(!disk.flip_bit(Path::new(FILE), 6, 0));
    }
}
