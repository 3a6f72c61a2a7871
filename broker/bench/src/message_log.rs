//! A file with one line per message, written by `produce --ack-log` and `consume --message-log`.
//! Comparing the two shows whether an acknowledged message was lost.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::BenchError;

/// A log that all connections of a run share.
#[derive(Debug, Clone)]
pub(crate) struct MessageLog {
    path: PathBuf,
    out: Arc<Mutex<BufWriter<File>>>,
}

impl MessageLog {
    /// Creates the file, or opens nothing when no path is given.
    pub(crate) fn open(path: Option<&Path>) -> Result<Option<Self>, BenchError> {
        let Some(path) = path else { return Ok(None) };
        let path = path.to_owned();
        match File::create(&path) {
            Ok(file) => Ok(Some(Self {
                path,
                out: Arc::new(Mutex::new(BufWriter::new(file))),
            })),
            Err(source) => Err(BenchError::Log { path, source }),
        }
    }

    /// Writes a line. A failure shows when the log is finished.
    pub(crate) fn line(&self, key: &str, queue_id: impl Display, queue_offset: impl Display) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{key} {queue_id} {queue_offset}");
    }

    /// Writes out what is buffered.
    pub(crate) fn finish(&self) -> Result<(), BenchError> {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.flush().map_err(|source| BenchError::Log {
            path: self.path.clone(),
            source,
        })
    }
}
