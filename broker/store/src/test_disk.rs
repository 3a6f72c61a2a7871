//! Owns the simulated disk of the unit tests: files in memory, each with the content a crash would
//! leave, and faults on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile, DiskLock, DiskSpace};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Content {
    now: Vec<u8>,
    synced: Vec<u8>,
}

/// Bytes all files may take together unless a test says otherwise.
const BYTES_MAX: u64 = 1 << 40;

/// Files in memory. Clones share them. Names are durable at once, content when synced.
#[derive(Debug, Default, Clone)]
pub(crate) struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>>,
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct Faults {
    /// Bytes that no file has yet.
    available: AtomicU64,
    sync: AtomicBool,
    write: AtomicBool,
    syncs: AtomicU64,
    /// Changes that still succeed; then the power is gone.
    changes_left: Mutex<Option<u64>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            available: AtomicU64::new(BYTES_MAX),
            sync: AtomicBool::new(false),
            write: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            changes_left: Mutex::new(None),
        }
    }
}

impl Faults {
    /// Takes space for a file that grows from `old` to `new` bytes, or gives it back.
    fn resize(&self, old: usize, new: usize) -> io::Result<()> {
        let (grown, shrunk) = (new.saturating_sub(old), old.saturating_sub(new));
        let take = |available: u64| available.checked_sub(grown as u64);
        self.available
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .map_err(|_| io::ErrorKind::StorageFull)?;
        self.available.fetch_add(shrunk as u64, Ordering::Relaxed);
        Ok(())
    }

    fn change(&self) -> io::Result<()> {
        match self.changes_left.lock().unwrap().as_mut() {
            Some(0) => Err(io::Error::other("simulated power loss")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct MemoryFile {
    content: Mutex<Content>,
    /// Sectors that cannot be read until they are written as a whole.
    bad_sectors: Mutex<BTreeSet<u64>>,
    faults: Arc<Faults>,
}

impl MemoryDisk {
    /// Every byte that was not synced is gone.
    pub(crate) fn crash(&self) {
        for file in self.files.lock().unwrap().values() {
            let mut content = file.content.lock().unwrap();
            content.now = content.synced.clone();
        }
    }

    /// From now on every sync fails.
    pub(crate) fn fail_syncs(&self) {
        self.faults.sync.store(true, Ordering::Relaxed);
    }

    /// From now on the files may take this many bytes more than they have.
    pub(crate) fn set_available(&self, bytes: u64) {
        self.faults.available.store(bytes, Ordering::Relaxed);
    }

    /// From now on (or no longer) every write fails, as on a disk of which copies are written.
    pub(crate) fn fail_writes(&self, fail: bool) {
        self.faults.write.store(fail, Ordering::Relaxed);
    }

    /// Only this many more changes (writes, cuts, syncs, names) reach the disk.
    pub(crate) fn stop_after(&self, changes: Option<u64>) {
        *self.faults.changes_left.lock().unwrap() = changes;
    }

    /// Number of file syncs so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.faults.syncs.load(Ordering::Relaxed)
    }

    /// Changes the bytes of a file behind the back of the store, durably.
    pub(crate) fn edit(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let file = self.files.lock().unwrap()[path].clone();
        let mut content = file.content.lock().unwrap();
        change(&mut content.now);
        content.synced = content.now.clone();
    }

    /// A sector of 4096 bytes cannot be read any more.
    pub(crate) fn lose_sector(&self, path: &Path, sector: u64) {
        let file = self.files.lock().unwrap()[path].clone();
        file.bad_sectors.lock().unwrap().insert(sector);
    }

    /// The bytes of a file.
    pub(crate) fn content(&self, path: &Path) -> Vec<u8> {
        self.files.lock().unwrap()[path]
            .content
            .lock()
            .unwrap()
            .now
            .clone()
    }

    /// The space of a file that has no name any more is free again.
    fn give_back(&self, gone: Option<Arc<MemoryFile>>) -> io::Result<()> {
        let bytes = gone.map_or(0, |file| file.content.lock().unwrap().now.len());
        self.faults.resize(bytes, 0)
    }

    /// An independent copy of all files, without locks or faults.
    pub(crate) fn fork(&self) -> Self {
        let copy = Self::default();
        for (path, file) in self.files.lock().unwrap().iter() {
            let content = file.content.lock().unwrap();
            let content = Content {
                now: content.now.clone(),
                synced: content.synced.clone(),
            };
            let file = MemoryFile {
                content: Mutex::new(content),
                bad_sectors: Mutex::new(file.bad_sectors.lock().unwrap().clone()),
                faults: copy.faults.clone(),
            };
            copy.files
                .lock()
                .unwrap()
                .insert(path.clone(), Arc::new(file));
        }
        copy
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemoryDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.faults.change()?;
        let file = Arc::new(MemoryFile {
            content: Mutex::new(Content::default()),
            bad_sectors: Mutex::default(),
            faults: self.faults.clone(),
        });
        let old = self
            .files
            .lock()
            .unwrap()
            .insert(path.to_owned(), file.clone());
        self.give_back(old)?;
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = self
            .files
            .lock()
            .unwrap()
            .get(path)
            .cloned()
            .ok_or_else(missing)?;
        Ok(file)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.files.lock().unwrap().contains_key(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = self.files.lock().unwrap();
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.faults.change()?;
        let file = self.files.lock().unwrap().remove(path);
        self.give_back(Some(file.ok_or_else(missing)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.change()?;
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or_else(missing)?;
        let replaced = files.insert(to.to_owned(), file);
        self.give_back(replaced)
    }

    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn space(&self, _path: &Path) -> io::Result<DiskSpace> {
        let available_bytes = self.faults.available.load(Ordering::Relaxed);
        Ok(DiskSpace {
            used_bytes: BYTES_MAX.saturating_sub(available_bytes),
            available_bytes,
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        if !self.locks.lock().unwrap().insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(MemoryLock {
            locks: self.locks.clone(),
            path: path.to_owned(),
        }))
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let sectors = offset / 4096..(offset + buf.len() as u64).div_ceil(4096);
        if self
            .bad_sectors
            .lock()
            .unwrap()
            .range(sectors)
            .next()
            .is_some()
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        let content = self.content.lock().unwrap();
        let from = (offset as usize).min(content.now.len());
        let read = buf.len().min(content.now.len() - from);
        buf[..read].copy_from_slice(&content.now[from..from + read]);
        Ok(read)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.faults.change()?;
        if self.faults.write.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut content = self.content.lock().unwrap();
        let end = offset as usize + buf.len();
        if content.now.len() < end {
            self.faults.resize(content.now.len(), end)?;
            content.now.resize(end, 0);
        }
        content.now[offset as usize..end].copy_from_slice(buf);
        // A sector at the end of the file has no more bytes than the file.
        let is_last = end == content.now.len();
        let mut bad = self.bad_sectors.lock().unwrap();
        for sector in offset / 4096..(end as u64).div_ceil(4096) {
            let whole = sector * 4096 >= offset && (is_last || (sector + 1) * 4096 <= end as u64);
            if !whole && bad.contains(&sector) {
                return Err(io::Error::from_raw_os_error(5));
            }
            bad.remove(&sector);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.faults.change()?;
        if self.faults.sync.load(Ordering::Relaxed) {
            return Err(io::Error::other("simulated sync failure"));
        }
        self.faults.syncs.fetch_add(1, Ordering::Relaxed);
        let mut content = self.content.lock().unwrap();
        content.synced = content.now.clone();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.faults.change()?;
        let mut content = self.content.lock().unwrap();
        self.faults.resize(content.now.len(), len as usize)?;
        content.now.resize(len as usize, 0);
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryLock {
    locks: Arc<Mutex<BTreeSet<PathBuf>>>,
    path: PathBuf,
}

impl DiskLock for MemoryLock {}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        self.locks.lock().unwrap().remove(&self.path);
    }
}
