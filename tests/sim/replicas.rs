//! What the disks of all nodes tell about Raft, once every node has caught up and is switched off.
//! Each rule has an id.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use raftmq_store::checkpoint::{Checkpoint, CheckpointDir};
use raftmq_store::{CommitLog, Disk, LogConfig, StoreError, StoredEntry};

use super::disk::SimDisk;
use super::node::{Node, ROOT};

/// Sections of a checkpoint that are the same on every node: the state machine and the newest store
/// timestamp.
const REPLICATED_SECTIONS: [u32; 2] = [1, 5];
/// Bytes of the log that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// What one disk holds.
#[derive(Debug)]
struct Held {
    entries: BTreeMap<u64, StoredEntry>,
    /// Address of the first byte that is still there.
    min_physical: u64,
    checkpoints: BTreeMap<u64, Checkpoint>,
    files: BTreeMap<u64, Vec<u8>>,
}

/// Every rule that does not hold.
pub fn check(nodes: &[Node]) -> Vec<String> {
    let mut held = Vec::new();
    for node in nodes {
        match read(node) {
            Ok(one) => held.push((node.id, one)),
            Err(error) => return vec![format!("R0: n{} cannot be opened: {error}", node.id)],
        }
    }
    let mut problems = Vec::new();
    for (at, (id, one)) in held.iter().enumerate() {
        for (other_id, other) in &held[at + 1..] {
            let pair = format!("n{id} and n{other_id}");
            problems.extend(same_entries(one, other).map(|what| format!("R2: {pair} {what}")));
            problems.extend(same_bytes(one, other).map(|what| format!("R3: {pair} {what}")));
            problems.extend(same_state(one, other).map(|what| format!("R4: {pair} {what}")));
        }
    }
    problems
}

/// The log of a node, and the rest of its disk.
fn open(node: &Node) -> Result<(Arc<CommitLog>, Arc<dyn Disk>), StoreError> {
    let disk: Arc<dyn Disk> = Arc::new(SimDisk::of_files(node.disk().files()));
    let config = LogConfig {
        segment_bytes: node.segment_bytes(),
        ..LogConfig::new(Node::segments())
    };
    let (log, ..) = CommitLog::open(Arc::clone(&disk), config, None)?;
    Ok((log, disk))
}

fn entries(log: &CommitLog) -> Result<BTreeMap<u64, StoredEntry>, StoreError> {
    let mut entries = BTreeMap::new();
    let mut next = log.purged_id().map_or(0, |purged| purged.index + 1);
    let end = log.last_id().map_or(0, |last| last.index + 1);
    while next < end {
        for entry in log.read(next, end, READ_BYTES)? {
            next = entry.id.index + 1;
            entries.insert(entry.id.index, entry);
        }
    }
    Ok(entries)
}

/// Index of the last purged entry, and the term of each that is there, as the disk holds it.
pub(super) fn terms(node: &Node) -> Result<(Option<u64>, BTreeMap<u64, u64>), StoreError> {
    let (log, _) = open(node)?;
    let terms = entries(&log)?.into_iter();
    let terms = terms.map(|(index, entry)| (index, entry.id.term));
    Ok((log.purged_id().map(|id| id.index), terms.collect()))
}

fn read(node: &Node) -> Result<Held, StoreError> {
    let (log, disk) = open(node)?;
    let entries = entries(&log)?;
    let files = node.disk().files();
    let dir = CheckpointDir::open(disk, &Path::new(ROOT).join("checkpoint"))?;
    let mut checkpoints = BTreeMap::new();
    for index in dir.list()? {
        match dir.read(index) {
            Ok(checkpoint) => {
                checkpoints.insert(index, checkpoint);
            }
            Err(_) if node.checkpoint_damaged => {}
            Err(error) => return Err(error),
        }
    }
    let segments = Node::segments();
    let named = files.into_iter().filter_map(|(path, bytes)| {
        let name = path.file_name()?.to_str()?;
        let base = (path.parent() == Some(&segments)).then(|| name.parse().ok())??;
        Some((base, bytes))
    });
    Ok(Held {
        entries,
        min_physical: log.min_physical(),
        checkpoints,
        files: named.collect(),
    })
}

/// R2: at one index stands one entry.
fn same_entries(one: &Held, other: &Held) -> impl Iterator<Item = String> {
    let differs = one.entries.iter().find_map(|(index, entry)| {
        let same = other.entries.get(index)?;
        let equal = (entry.id, entry.kind, &entry.payload, entry.physical_offset)
            == (same.id, same.kind, &same.payload, same.physical_offset);
        (!equal).then(|| format!("differ at index {index}: {:?} {:?}", entry.id, same.id))
    });
    differs.into_iter()
}

/// R3: sealed segments are the same bytes.
fn same_bytes(one: &Held, other: &Held) -> impl Iterator<Item = String> {
    let bases: Vec<u64> = one.files.keys().copied().collect();
    let differs = bases.windows(2).find_map(|pair| {
        let (base, next) = (pair[0], pair[1]);
        if base < one.min_physical.max(other.min_physical) {
            return None;
        }
        let length = (next - base) as usize;
        let sealed = other.files.keys().any(|other| *other == next);
        let (first, second) = (one.files.get(&base)?, other.files.get(&base)?);
        let equal = first.get(..length) == second.get(..length);
        (sealed && !equal).then(|| format!("differ in segment {base}"))
    });
    differs.into_iter()
}

/// R4: at one index stands one state.
fn same_state(one: &Held, other: &Held) -> impl Iterator<Item = String> {
    let differs = one.checkpoints.iter().find_map(|(index, checkpoint)| {
        let same = other.checkpoints.get(index)?;
        let section = REPLICATED_SECTIONS
            .into_iter()
            .find(|tag| checkpoint.sections.get(tag) != same.sections.get(tag))?;
        Some(format!(
            "differ in section {section} of the checkpoint at {index}"
        ))
    });
    differs.into_iter()
}
