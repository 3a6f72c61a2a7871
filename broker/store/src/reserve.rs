//! Owns the reserve: a file that holds space back, so that a checkpoint can still be written when
//! the disk is full. The rest of the store needs none: votes, marks and hints are written in place
//! into a file that was given its blocks when it was made, and the log has its ground.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::disk::Disk;
use crate::error::StoreError;

/// Name of the file in its folder.
const FILE_NAME: &str = "reserve";
/// Bytes written at once.
const STEP_BYTES: u64 = 1024 * 1024;

static ZEROS: [u8; STEP_BYTES as usize] = [0; STEP_BYTES as usize];

/// Space that is held back in a folder.
#[derive(Debug)]
pub struct Reserve {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// Bytes the file has; the lock is held while the file is changed.
    held: Mutex<u64>,
}

impl Reserve {
    /// Looks for the reserve of a folder, which must exist. Makes none: that takes time, and may
    /// not be possible now.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let io = |source| StoreError::io("open", &path, source);
        let held = if disk.exists(&path).map_err(io)? {
            disk.open(&path).and_then(|file| file.len()).map_err(io)?
        } else {
            0
        };
        Ok(Self {
            disk,
            path,
            held: Mutex::new(held),
        })
    }

    /// Bytes that are held back now.
    pub fn held_bytes(&self) -> u64 {
        *self.held()
    }

    /// Holds back `bytes` bytes, or as many as the disk has. An error means that not even the file
    /// could be made or grown; being out of space is none.
    pub fn hold(&self, bytes: u64) -> Result<(), StoreError> {
        let mut held = self.held();
        if *held >= bytes {
            return Ok(());
        }
        let io = |source| StoreError::io("write", &self.path, source);
        let file = if *held > 0 {
            self.disk.open(&self.path).map_err(io)?
        } else {
            self.disk.create(&self.path).map_err(io)?
        };
        while *held < bytes {
            let step = STEP_BYTES.min(bytes - *held);
            // Synced step by step: a file system that allocates late says only then that it is full.
            let written = file
                .write_all_at(&ZEROS[..step as usize], *held)
                .and_then(|()| file.sync_data())
                .map_err(io);
            match written {
                Ok(()) => *held += step,
                Err(error) if error.is_out_of_space() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Gives the space back to the file system; false when none was held.
    pub fn release(&self) -> Result<bool, StoreError> {
        let mut held = self.held();
        if *held == 0 {
            return Ok(false);
        }
        self.disk
            .remove(&self.path)
            .map_err(|source| StoreError::io("remove", &self.path, source))?;
        *held = 0;
        Ok(true)
    }

    /// Does `work`; when it runs out of space, gives the reserve up for it and does it once more.
    pub fn spend_on<T>(
        &self,
        mut work: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match work() {
            Err(error) if error.is_out_of_space() && self.release()? => work(),
            done => done,
        }
    }

    fn held(&self) -> MutexGuard<'_, u64> {
        self.held.lock().expect("a panic ends the process")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_disk::MemoryDisk;

    const MIB: u64 = 1024 * 1024;

    fn open(disk: &MemoryDisk) -> Reserve {
        Reserve::open(Arc::new(disk.clone()), Path::new("/data")).unwrap()
    }

    fn write(disk: &MemoryDisk, bytes: u64) -> Result<(), StoreError> {
        let path = Path::new("/data/work");
        let write = || disk.create(path)?.write_all_at(&vec![7; bytes as usize], 0);
        write().map_err(|source| StoreError::io("write", path, source))
    }

    #[test]
    fn a_full_disk_takes_what_the_reserve_held_back() {
        let disk = MemoryDisk::default();
        let reserve = open(&disk);
        reserve.hold(3 * MIB).unwrap();
        disk.set_available(0);
        assert!(write(&disk, MIB).unwrap_err().is_out_of_space());
        reserve.spend_on(|| write(&disk, MIB)).unwrap();
        assert_eq!(reserve.held_bytes(), 0);
        // What is left is held back again, though it is less than wanted.
        reserve.hold(3 * MIB).unwrap();
        assert_eq!(reserve.held_bytes(), 2 * MIB);
        assert_eq!(open(&disk).held_bytes(), 2 * MIB);
    }

    #[test]
    fn a_reserve_that_is_too_small_does_not_hide_the_full_disk() {
        let disk = MemoryDisk::default();
        let reserve = open(&disk);
        reserve.hold(MIB).unwrap();
        disk.set_available(0);
        let error = reserve.spend_on(|| write(&disk, 2 * MIB)).unwrap_err();
        assert!(error.is_out_of_space());
        assert!(!reserve.release().unwrap());
    }

    #[test]
    fn other_errors_leave_the_reserve_alone() {
        let disk = MemoryDisk::default();
        let reserve = open(&disk);
        reserve.hold(MIB).unwrap();
        disk.stop_after(Some(0));
        assert!(reserve.spend_on(|| write(&disk, 1)).is_err());
        assert_eq!(reserve.held_bytes(), MIB);
    }
}
