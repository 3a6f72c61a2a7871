//! The key-value configuration of the name server: values by namespace and key, kept in one file.
//!
//! The file has RocketMQ's form, `{"configTable":{"NAMESPACE":{"key":"value"}}}`, so that either
//! name server can start from the other's. It is replaced in one step; a reader never sees half.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use raftmq_host::limits::{
    NAMESRV_KV_BYTES_MAX, NAMESRV_KV_KEYS_MAX, NAMESRV_KV_NAME_BYTES_MAX,
    NAMESRV_KV_VALUE_BYTES_MAX,
};

/// Namespace that holds the queues of globally ordered topics.
pub(super) const ORDER_TOPIC_NAMESPACE: &str = "ORDER_TOPIC_CONFIG";

/// Why a value was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PutError {
    /// Longer than [`NAMESRV_KV_NAME_BYTES_MAX`] or [`NAMESRV_KV_VALUE_BYTES_MAX`].
    #[error(
        "namespace and key have at most {NAMESRV_KV_NAME_BYTES_MAX} bytes, the value \
         {NAMESRV_KV_VALUE_BYTES_MAX}"
    )]
    Long,
    /// All together longer than [`NAMESRV_KV_BYTES_MAX`].
    #[error("name server has reached its limit of {NAMESRV_KV_BYTES_MAX} bytes of configuration")]
    Large,
    /// More than [`NAMESRV_KV_KEYS_MAX`] keys.
    #[error("name server has reached its limit of {NAMESRV_KV_KEYS_MAX} keys")]
    Full,
}

/// The values in memory.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, from = "KvTable")]
pub(super) struct KvConfig {
    config_table: BTreeMap<String, BTreeMap<String, String>>,
    #[serde(skip)]
    keys: usize,
    /// Namespaces, once for each key, keys and values.
    #[serde(skip)]
    bytes: usize,
}

/// The form of the file.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct KvTable {
    config_table: BTreeMap<String, BTreeMap<String, String>>,
}

impl From<KvTable> for KvConfig {
    fn from(KvTable { config_table }: KvTable) -> Self {
        let rows = config_table.iter().flat_map(|(namespace, table)| {
            table
                .iter()
                .map(|(key, value)| row_bytes(namespace, key, value))
        });
        let (keys, bytes) = rows.fold((0, 0), |(keys, bytes), row| (keys + 1, bytes + row));
        Self {
            config_table,
            keys,
            bytes,
        }
    }
}

fn row_bytes(namespace: &str, key: &str, value: &str) -> usize {
    namespace.len() + key.len() + value.len()
}

impl KvConfig {
    /// Reads a file; one that does not exist is empty.
    pub(super) fn load(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn get(&self, namespace: &str, key: &str) -> Option<&str> {
        self.config_table
            .get(namespace)?
            .get(key)
            .map(String::as_str)
    }

    pub(super) fn namespace(&self, namespace: &str) -> Option<&BTreeMap<String, String>> {
        self.config_table.get(namespace)
    }

    /// The text of the file.
    pub(super) fn text(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// What a file holds beyond the limits stays, but does not grow.
    pub(super) fn put(&mut self, namespace: &str, key: &str, value: &str) -> Result<(), PutError> {
        if namespace.len().max(key.len()) > NAMESRV_KV_NAME_BYTES_MAX
            || value.len() > NAMESRV_KV_VALUE_BYTES_MAX
        {
            return Err(PutError::Long);
        }
        let present = self.get(namespace, key);
        let present = present.map(|value| row_bytes(namespace, key, value));
        if present.is_none() && self.keys >= NAMESRV_KV_KEYS_MAX {
            return Err(PutError::Full);
        }
        let (before, after) = (present.unwrap_or(0), row_bytes(namespace, key, value));
        let bytes = self.bytes - before + after;
        if bytes > NAMESRV_KV_BYTES_MAX && after > before {
            return Err(PutError::Large);
        }
        self.bytes = bytes;
        self.keys += usize::from(present.is_none());
        let table = self.config_table.entry(namespace.to_owned()).or_default();
        table.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn delete(&mut self, namespace: &str, key: &str) {
        if let Some(table) = self.config_table.get_mut(namespace) {
            if let Some(value) = table.remove(key) {
                self.keys -= 1;
                self.bytes -= row_bytes(namespace, key, &value);
            }
            if table.is_empty() {
                self.config_table.remove(namespace);
            }
        }
    }
}

/// The file of a [`KvConfig`]. Writes are numbered by the caller in the order of the changes, so
/// that a late write of an old state is skipped.
#[derive(Debug)]
pub(super) struct KvFile {
    path: PathBuf,
    written: u64,
}

impl KvFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, written: 0 }
    }

    /// Number of the newest change that is on disk.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Replaces the file by `text`, which is the state after change `number`; returns when it
    /// is on disk.
    pub(super) fn write(&mut self, text: &[u8], number: u64) -> io::Result<()> {
        if number <= self.written {
            return Ok(());
        }
        let parent = self
            .path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        std::fs::create_dir_all(parent)?;
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        std::fs::File::open(parent)?.sync_all()?;
        self.written = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_rocketmq_is_read() {
        let text = r#"{"configTable":{"ORDER_TOPIC_CONFIG":{"T":"b:4"}}}"#;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kv.json");
        std::fs::write(&path, text).unwrap();
        let config = KvConfig::load(&path).unwrap();
        assert_eq!(config.get(ORDER_TOPIC_NAMESPACE, "T"), Some("b:4"));
    }

    #[test]
    fn what_was_written_is_read_and_old_states_are_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/kv.json");
        assert_eq!(KvConfig::load(&path).unwrap(), KvConfig::default());
        let mut config = KvConfig::default();
        config.put("n", "k", "v").unwrap();
        let mut file = KvFile::new(path.clone());
        file.write(&config.text().unwrap(), 2).unwrap();
        let old = KvConfig::default().text().unwrap();
        file.write(&old, 1).unwrap();
        assert_eq!(KvConfig::load(&path).unwrap(), config);
    }

    #[test]
    fn a_namespace_without_keys_is_gone() {
        let mut config = KvConfig::default();
        config.put("n", "k", "v").unwrap();
        config.delete("n", "k");
        config.delete("n", "k");
        assert_eq!(config, KvConfig::default());
    }

    #[test]
    fn values_beyond_the_limit_of_all_together_are_refused() {
        let value = "x".repeat(NAMESRV_KV_VALUE_BYTES_MAX);
        let mut config = KvConfig::default();
        let refused = (0..1_000).find_map(|key| {
            let key = format!("{key:04}");
            config
                .put("n", &key, &value)
                .err()
                .map(|error| (key, error))
        });
        let (refused, error) = refused.unwrap();
        assert_eq!((refused.as_str(), error), ("0127", PutError::Large));
        // What is there may shrink, be written again, and make room.
        config.put("n", "0000", &value).unwrap();
        config.put("n", "0000", "").unwrap();
        config.put("n", &refused, &value).unwrap();
        config.delete("n", "0001");
        config.put("n", "0001", &value).unwrap();
        let read: KvConfig = serde_json::from_slice(&config.text().unwrap()).unwrap();
        assert_eq!(read, config);
    }

    #[test]
    fn long_texts_are_refused() {
        let long = "x".repeat(NAMESRV_KV_VALUE_BYTES_MAX + 1);
        assert_eq!(
            KvConfig::default().put("n", "k", &long),
            Err(PutError::Long)
        );
    }
}
