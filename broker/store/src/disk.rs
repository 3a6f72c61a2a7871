//! Owns the boundary to the file system: the [`Disk`] trait, through which every file of the store
//! goes so that a simulated disk can stand in, and [`RealDisk`], the only user of `std::fs`.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Space of a file system, counted as `df` and RocketMQ do: what only the super-user may take
/// counts as neither used nor available.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskSpace {
    /// Bytes that files take.
    pub used_bytes: u64,
    /// Bytes that an ordinary user can still take.
    pub available_bytes: u64,
}

impl DiskSpace {
    /// Used and available bytes together.
    pub fn total_bytes(self) -> u64 {
        self.used_bytes.saturating_add(self.available_bytes)
    }

    /// Used part, rounded up as in RocketMQ. Unit: percent, 0-100; 0 for an unknown size.
    pub fn used_percent(self) -> u8 {
        let total = u128::from(self.total_bytes());
        let used = u128::from(self.used_bytes) * 100;
        match used.div_ceil(total.max(1)) {
            percent if percent < 100 => percent as u8,
            _ => 100,
        }
    }
}

/// A file system, or something that behaves like one. Paths are used as given.
pub trait Disk: Send + Sync + Debug {
    /// Makes an empty file for reading and writing; an existing one loses its content.
    /// The name is durable only after [`Disk::sync_dir`] of its folder.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Whether a file or folder of this name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Names (without the folder) of the files in a folder, sorted; subfolders are left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Unlinks a file. Open handles go on reading the old content.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames atomically; an existing target is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a folder and its parents, durably; an existing one is fine.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes names created, renamed or removed in this folder durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Space of the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<DiskSpace>;

    /// Takes the exclusive lock file at `path`, made if missing, until the returned value is
    /// dropped or the process ends. `WouldBlock` when someone else holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>>;
}

/// An open file. All calls carry their position, so one handle serves many threads.
pub trait DiskFile: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; fewer (also zero) only at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes the whole buffer at `offset`; the file grows when needed.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Writes the parts one after the other, beginning at `offset`, as one write where possible.
    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        self.write_all_at(&parts.concat(), offset)
    }

    /// Makes the content, and the length as far as reading the content needs it, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file, or extends it with zeros. Atomic with regard to a crash.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Reads exactly `buf.len()` bytes at `offset`, `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.read_at(buf, offset)? == buf.len() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the file ends before the wanted bytes",
        ))
    }
}

/// A held lock; dropping it gives the lock back.
pub trait DiskLock: Send + Sync + Debug {}

/// The file system of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(
            OpenOptions::new().read(true).write(true).open(path)?,
        )))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        fs::exists(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                continue;
            }
            // The store only makes ASCII names; others are not its files.
            if let Ok(name) = entry.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut made: Vec<&Path> = Vec::new();
        for folder in dir.ancestors() {
            if folder.as_os_str().is_empty() || fs::exists(folder)? {
                break;
            }
            made.push(folder);
        }
        fs::create_dir_all(dir)?;
        // Without its folder's name a file is lost, however well it was synced itself.
        for folder in &made {
            sync_parent(folder)?;
        }
        if !made.is_empty() {
            return Ok(());
        }
        // A process that died just after making it may not have come to that. A parent that may not
        // be read or cannot be synced is not ours: somebody else made the folder, as a mount point
        // on a read-only root, say.
        sync_parent(dir).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Unsupported => Ok(()),
            _ => Err(error),
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(DiskSpace {
            used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            available_bytes: bytes(stat.f_bavail),
        })
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn DiskLock>> {
        // The content stays: it may name the present holder for a human.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes the name of a folder durable. The root of a file system has none.
fn sync_parent(folder: &Path) -> io::Result<()> {
    match folder.parent() {
        Some(parent) if parent.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.0.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn write_parts_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        /// The kernel takes at most this many parts in one call (`IOV_MAX` of Linux).
        const PARTS_MAX: usize = 1024;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = slices.as_mut_slice();
        // Skips leading empty parts, which would look like a write that makes no progress.
        IoSlice::advance_slices(&mut rest, 0);
        let mut position = offset;
        while !rest.is_empty() {
            let now = rest.len().min(PARTS_MAX);
            match rustix::io::pwritev(&self.0, &rest[..now], position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    position += written as u64;
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl DiskLock for RealLock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_with_their_parents_and_again_without_harm() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store/commitlog");
        for _ in 0..2 {
            RealDisk.create_dir_all(&folder).unwrap();
            RealDisk.create_dir_all(Path::new(".")).unwrap();
            RealDisk.create_dir_all(Path::new("/")).unwrap();
        }
        assert!(RealDisk.exists(&folder).unwrap());
        RealDisk.create(&dir.path().join("file")).unwrap();
        let through_a_file = dir.path().join("file/folder");
        assert!(RealDisk.create_dir_all(&through_a_file).is_err());
    }

    #[test]
    fn used_percent_is_rounded_up_and_stays_within_0_to_100() {
        let percent = |used_bytes, available_bytes| {
            DiskSpace {
                used_bytes,
                available_bytes,
            }
            .used_percent()
        };
        assert_eq!(percent(90, 10), 90);
        assert_eq!(percent(901, 99), 91);
        assert_eq!(percent(1, u64::MAX), 1);
        assert_eq!((percent(0, 0), percent(0, 5), percent(5, 0)), (0, 0, 100));
    }
}
