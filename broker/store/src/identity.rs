//! Owns the file `identity`, which ties a data folder to one broker, and the lock of the folder.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskLock};
use crate::error::StoreError;

/// Version of the layout of the data folder that this program writes and reads.
pub const FORMAT_VERSION: u32 = 1;

const FILE_NAME: &str = "identity";
const LOCK_NAME: &str = "lock";
/// An identity is far smaller; the limit keeps a wrong file from being read into memory.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Whose data a folder holds. Written once, compared at every start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Name of the cluster (`brokerClusterName`).
    pub cluster: String,
    /// Name of the Raft group (`brokerName`).
    pub group: String,
    /// Node id in the Raft group; never used again after the node's disk was lost.
    pub node_id: u64,
    /// Random text made when the log was new: tells a disk from the one that replaced it under the
    /// same node id. Empty only in folders of versions that made none.
    pub incarnation: String,
    /// Layout of the folder, see [`FORMAT_VERSION`].
    pub format_version: u32,
}

impl Identity {
    /// Reads the folder's identity and compares it with `expected`, or writes `expected` into a
    /// folder that has none. An empty expected `incarnation` accepts, and returns, any; a folder
    /// that has none yet, or whose log is gone (`has_log` false), gets `fresh_incarnation`.
    pub fn open_or_create(
        disk: &dyn Disk,
        dir: &Path,
        expected: &Self,
        fresh_incarnation: &str,
        has_log: bool,
    ) -> Result<Self, StoreError> {
        let path = dir.join(FILE_NAME);
        let io = |source| StoreError::io("open", &path, source);
        disk.create_dir_all(dir).map_err(io)?;
        if !disk.exists(&path).map_err(io)? {
            let mut created = expected.clone();
            created.take_incarnation(fresh_incarnation, false);
            created.write(disk, dir)?;
            return Ok(created);
        }
        let file = disk.open(&path).map_err(io)?;
        let mut bytes = vec![0; file.len().map_err(io)?.min(FILE_BYTES_MAX) as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io)?;
        let mut found: Self = serde_json::from_slice(&bytes).map_err(|error| {
            StoreError::Identity(format!(
                "{} is not a readable identity ({error}); restore it from a backup, or give the \
                 broker an empty folder and a new node id",
                path.display()
            ))
        })?;
        found.compare(expected, dir)?;
        if found.take_incarnation(fresh_incarnation, has_log) {
            found.write(disk, dir)?;
        }
        Ok(found)
    }

    /// Takes `fresh` unless there is an incarnation and the log it was made for; returns whether it
    /// did.
    fn take_incarnation(&mut self, fresh: &str, has_log: bool) -> bool {
        let keeps = has_log && !self.incarnation.is_empty();
        let takes = !keeps && !fresh.is_empty();
        if takes {
            fresh.clone_into(&mut self.incarnation);
        }
        takes
    }

    fn write(&self, disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
        let path = dir.join(FILE_NAME);
        let temporary = dir.join("identity.tmp");
        let io = |source| StoreError::io("write", &path, source);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| StoreError::Identity(format!("identity as JSON: {error}")))?;
        let file = disk.create(&temporary).map_err(io)?;
        file.write_all_at(&text, 0).map_err(io)?;
        file.sync_data().map_err(io)?;
        disk.rename(&temporary, &path).map_err(io)?;
        disk.sync_dir(dir).map_err(io)
    }

    fn compare(&self, expected: &Self, dir: &Path) -> Result<(), StoreError> {
        let rows = [
            ("cluster", self.cluster.clone(), expected.cluster.clone()),
            ("group", self.group.clone(), expected.group.clone()),
            (
                "node id",
                self.node_id.to_string(),
                expected.node_id.to_string(),
            ),
            (
                "incarnation",
                self.incarnation.clone(),
                expected.incarnation.clone(),
            ),
        ];
        for (name, found, wanted) in rows {
            let any = name == "incarnation" && wanted.is_empty();
            if found != wanted && !any {
                return Err(StoreError::Identity(format!(
                    "the data folder {} belongs to {name} {found}, but this broker is configured \
                     as {name} {wanted}; correct the configuration, or give the broker an empty \
                     folder (and a new node id)",
                    dir.display()
                )));
            }
        }
        if self.format_version != expected.format_version {
            return Err(StoreError::Identity(format!(
                "the data folder {} has format version {}, but this program works with {}; run \
                 the version of the program that wrote it",
                dir.display(),
                self.format_version,
                expected.format_version
            )));
        }
        Ok(())
    }
}

/// Takes the exclusive lock of a data folder, which is made if missing. The log takes it when it
/// opens; a tool that changes a folder takes it too.
pub fn lock_folder(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn DiskLock>, StoreError> {
    let path = dir.join(LOCK_NAME);
    disk.create_dir_all(dir)
        .map_err(|source| StoreError::io("create", dir, source))?;
    disk.lock(&path).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => StoreError::Locked(dir.to_owned()),
        _ => StoreError::io("lock", path, source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn identity(node_id: u64) -> Identity {
        Identity {
            cluster: "DefaultCluster".into(),
            group: "broker-a".into(),
            node_id,
            incarnation: "first".into(),
            format_version: FORMAT_VERSION,
        }
    }

    #[test]
    fn a_folder_of_another_node_is_refused_with_both_values() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        let written = Identity::open_or_create(&RealDisk, &folder, &identity(1), "", true).unwrap();
        assert_eq!(
            Identity::open_or_create(&RealDisk, &folder, &identity(1), "", true).unwrap(),
            written
        );
        let error =
            Identity::open_or_create(&RealDisk, &folder, &identity(2), "", true).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("node id 1") && text.contains("node id 2"),
            "{text}"
        );
        let any = Identity {
            incarnation: String::new(),
            ..identity(1)
        };
        assert_eq!(
            Identity::open_or_create(&RealDisk, &folder, &any, "other", true).unwrap(),
            written
        );
    }

    #[test]
    fn a_new_folder_and_one_without_an_incarnation_keep_the_first_they_get() {
        let dir = tempfile::tempdir().unwrap();
        let open_log = |name: &str, fresh: &str, has_log: bool| {
            let any = Identity {
                incarnation: String::new(),
                ..identity(1)
            };
            Identity::open_or_create(&RealDisk, &dir.path().join(name), &any, fresh, has_log)
                .unwrap()
        };
        let open = |name: &str, fresh: &str| open_log(name, fresh, true);
        assert_eq!(open("new", "one").incarnation, "one");
        assert_eq!(open("new", "two").incarnation, "one");
        // Written by a version that made none.
        assert_eq!(open("old", "").incarnation, "");
        assert_eq!(open("old", "three").incarnation, "three");
        assert_eq!(open("old", "four").incarnation, "three");
        // The log was on another disk, which is gone: this is not the node it was.
        assert_eq!(open_log("old", "five", false).incarnation, "five");
        assert_eq!(open("old", "six").incarnation, "five");
    }

    #[test]
    fn a_folder_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_folder(&RealDisk, dir.path()).unwrap();
        assert!(matches!(
            lock_folder(&RealDisk, dir.path()),
            Err(StoreError::Locked(_))
        ));
        drop(held);
        lock_folder(&RealDisk, dir.path()).unwrap();
    }
}
