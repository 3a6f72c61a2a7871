//! A disk in memory that writes down every change it is asked for.
//!
//! The list of changes ([`Change`]) is what a crash is made from: see `image.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use raftmq_store::{Disk, DiskFile, DiskLock, DiskSpace};

/// Number of a file, whatever its name is at the moment.
pub type FileId = usize;

/// One thing the disk was asked to do.
#[derive(Debug, Clone)]
pub enum Change {
    /// A name for a new, empty file.
    Create(PathBuf, FileId),
    /// Bytes at an offset.
    Write(FileId, u64, Arc<[u8]>),
    /// Another length.
    SetLen(FileId, u64),
    /// The content of a file shall be durable.
    Sync(FileId),
    /// A name goes.
    Remove(PathBuf),
    /// A name becomes another.
    Rename(PathBuf, PathBuf),
    /// The names of a folder shall be durable.
    SyncDir(PathBuf),
}

/// Space of the disk, which is never used up here. Unit: bytes.
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
    locks: BTreeSet<PathBuf>,
    changes: Option<Vec<Change>>,
}

impl Inner {
    fn note(&mut self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
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
            inner.names.insert(path, id);
        }
        drop(inner);
        disk
    }

    /// A disk with these names and contents, by file number, that writes down its changes.
    pub(super) fn resumed(names: BTreeMap<PathBuf, FileId>, contents: Vec<Vec<u8>>) -> Self {
        let disk = Self::recording();
        let mut inner = disk.lock_inner();
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
        let id = inner.contents.len();
        inner.contents.push(Vec::new());
        inner.names.insert(path.to_owned(), id);
        inner.note(|| Change::Create(path.to_owned(), id));
        drop(inner);
        Ok(self.file(id))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let id = *self.lock_inner().names.get(path).ok_or_else(missing)?;
        Ok(self.file(id))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.lock_inner().names.contains_key(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let inner = self.lock_inner();
        let inside = inner.names.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str());
        Ok(names.map(str::to_owned).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        inner.names.remove(path).ok_or_else(missing)?;
        inner.note(|| Change::Remove(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.lock_inner();
        let id = inner.names.remove(from).ok_or_else(missing)?;
        inner.names.insert(to.to_owned(), id);
        inner.note(|| Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        // Folders are made once, before anything is in them; they are always there here.
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.lock_inner().note(|| Change::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        Ok(DiskSpace {
            used_bytes: 0,
            available_bytes: SPACE_BYTES,
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
        let inner = self.disk.lock_inner();
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
        put(&mut inner.contents[self.id], offset, buf);
        inner.note(|| Change::Write(self.id, offset, buf.into()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.lock_inner().note(|| Change::Sync(self.id));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock_inner().contents[self.id].len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.lock_inner();
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
