//! Owns the manifest: the part of a checkpoint that says which run files belong to it and where
//! each queue stood. Variable-length numbers keep it at about 6 bytes per queue.
//!
//! ```text
//! version u32, then varints: next run id, minimum physical offset,
//! number of runs, run ids (oldest first),
//! number of queues, per queue: distance to the queue before, next queue offset, born
//! ```

use super::QueueNo;
use crate::error::StoreError;

const VERSION: u32 = 1;

/// Where one queue stood at a freeze.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueueRow {
    pub(crate) queue: QueueNo,
    /// Queue offset of the next unit.
    pub(crate) next: u64,
    /// Runs with a smaller id hold nothing of this queue (only of a removed one of its number).
    pub(crate) born: u64,
}

/// The decoded manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) next_run_id: u64,
    pub(crate) min_physical: u64,
    /// Oldest first.
    pub(crate) runs: Vec<u64>,
    /// Queues rising.
    pub(crate) queues: Vec<QueueRow>,
}

impl Manifest {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32 + self.runs.len() * 4 + self.queues.len() * 6);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        put(&mut bytes, self.next_run_id);
        put(&mut bytes, self.min_physical);
        put(&mut bytes, self.runs.len() as u64);
        for run in &self.runs {
            put(&mut bytes, *run);
        }
        put(&mut bytes, self.queues.len() as u64);
        let mut before = 0;
        for row in &self.queues {
            put(&mut bytes, u64::from(row.queue - before));
            put(&mut bytes, row.next);
            put(&mut bytes, row.born);
            before = row.queue;
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        parse(bytes).map_err(|reason| StoreError::decode("the index manifest", reason))
    }
}

fn parse(bytes: &[u8]) -> Result<Manifest, &'static str> {
    let Some((version, mut rest)) = bytes.split_first_chunk::<4>() else {
        return Err("the version is cut off");
    };
    if u32::from_le_bytes(*version) != VERSION {
        return Err("the version is unknown");
    }
    let next_run_id = take(&mut rest)?;
    let min_physical = take(&mut rest)?;
    let runs_count = take(&mut rest)?;
    // A lying count allocates nothing: the vectors grow by what is really there.
    let mut runs = Vec::new();
    for _ in 0..runs_count {
        let run = take(&mut rest)?;
        if run >= next_run_id {
            return Err("a run id has not been given yet");
        }
        runs.push(run);
    }
    let queues_count = take(&mut rest)?;
    let mut queues: Vec<QueueRow> = Vec::new();
    for _ in 0..queues_count {
        let distance = take(&mut rest)?;
        let before = queues.last().map(|row| row.queue);
        if before.is_some() && distance == 0 {
            return Err("the queues do not rise");
        }
        let queue = u64::from(before.unwrap_or(0)).checked_add(distance);
        let queue = queue.and_then(|queue| QueueNo::try_from(queue).ok());
        let queue = queue.ok_or("a queue number is too large")?;
        let (next, born) = (take(&mut rest)?, take(&mut rest)?);
        if born > next_run_id {
            return Err("a queue was born after the manifest");
        }
        queues.push(QueueRow { queue, next, born });
    }
    if !rest.is_empty() {
        return Err("bytes follow the last queue");
    }
    Ok(Manifest {
        next_run_id,
        min_physical,
        runs,
        queues,
    })
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = bytes.split_first() else {
            return Err("a number is cut off");
        };
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return Err("a number is too large");
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long")
}
