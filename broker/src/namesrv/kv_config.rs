//! The key-value configuration of the name server: values by namespace and key, kept in one file.
//!
//! The file has RocketMQ's form, `{"configTable":{"NAMESPACE":{"key":"value"}}}`, so that either
//! name server can start from the other's. It is replaced in one step; a reader never sees half.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limits::{NAMESRV_KV_BYTES_MAX, NAMESRV_KV_KEYS_MAX};

/// Namespace that holds the queues of globally ordered topics.
pub(super) const ORDER_TOPIC_NAMESPACE: &str = "ORDER_TOPIC_CONFIG";

/// Why a value was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PutError {
    /// Longer than [`NAMESRV_KV_BYTES_MAX`].
    #[error("namespace, key or value is longer than {NAMESRV_KV_BYTES_MAX} bytes")]
    Long,
    /// More than [`NAMESRV_KV_KEYS_MAX`] keys.
    #[error("name server has reached its limit of {NAMESRV_KV_KEYS_MAX} keys")]
    Full,
}

/// The values in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct KvConfig {
    config_table: BTreeMap<String, BTreeMap<String, String>>,
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

    pub(super) fn put(&mut self, namespace: &str, key: &str, value: &str) -> Result<(), PutError> {
        if [namespace, key, value]
            .iter()
            .any(|text| text.len() > NAMESRV_KV_BYTES_MAX)
        {
            return Err(PutError::Long);
        }
        let keys: usize = self.config_table.values().map(BTreeMap::len).sum();
        if keys >= NAMESRV_KV_KEYS_MAX && self.get(namespace, key).is_none() {
            return Err(PutError::Full);
        }
        let table = self.config_table.entry(namespace.to_owned()).or_default();
        table.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    pub(super) fn delete(&mut self, namespace: &str, key: &str) {
        if let Some(table) = self.config_table.get_mut(namespace) {
            table.remove(key);
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

    /// Replaces the file by `config`, which is the state after change `number`; returns when it
    /// is on disk.
    pub(super) fn write(&mut self, config: &KvConfig, number: u64) -> io::Result<()> {
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
        serde_json::to_writer_pretty(&mut file, config)?;
        file.flush()?;
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
        file.write(&config, 2).unwrap();
        file.write(&KvConfig::default(), 1).unwrap();
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
    fn long_texts_are_refused() {
        let long = "x".repeat(NAMESRV_KV_BYTES_MAX + 1);
        assert_eq!(
            KvConfig::default().put("n", "k", &long),
            Err(PutError::Long)
        );
    }
}
