//! What unfinished frames of all peers together may hold of memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Bytes of large unfinished frames at the Raft port. Room for six of the largest; a frame between
/// healthy peers is unfinished for a moment. Small ones are bounded by the number of connections.
const INTAKE_BYTES_MAX: usize = 512 << 20;

/// Counts them. Nobody waits for room: a frame that would go beyond the limit ends its connection, and
/// the sender begins anew. Waiting would let whoever sends slowly keep the others out.
#[derive(Debug)]
pub(crate) struct Intake {
    held: AtomicUsize,
    max: usize,
}

/// What one connection holds; given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    intake: Arc<Intake>,
    bytes: usize,
}

impl Default for Intake {
    fn default() -> Self {
        Self::new(INTAKE_BYTES_MAX)
    }
}

impl Intake {
    pub(super) fn new(max: usize) -> Self {
        Self {
            held: AtomicUsize::new(0),
            max,
        }
    }

    pub(super) fn held(self: &Arc<Self>) -> Held {
        Held {
            intake: Arc::clone(self),
            bytes: 0,
        }
    }
}

impl Held {
    /// Takes note that the connection holds `bytes` now.
    ///
    /// # Errors
    /// When that is too much, with what the others hold.
    pub(super) fn set(&mut self, bytes: usize) -> Result<(), io::Error> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let held = &self.intake.held;
        if bytes <= before {
            held.fetch_sub(before - bytes, Ordering::Relaxed);
            return Ok(());
        }
        let grown = bytes - before;
        if held.fetch_add(grown, Ordering::Relaxed) + grown <= self.intake.max {
            return Ok(());
        }
        let reason = "peers send too many large frames at a time";
        Err(io::Error::new(io::ErrorKind::OutOfMemory, reason))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.intake.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
