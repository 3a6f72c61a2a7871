//! Bits that turn over on a disk that a crash has left: a torn end may be cut, damage may not.

use std::path::{Path, PathBuf};

use raftmq_store::StoreError;
use raftmq_tests::sim::disk::SimDisk;
use raftmq_tests::sim::random::Random;

use super::mending;
use super::verdict::{Facts, check_facts, try_open};
use super::workload::{LOG_DIR, Recording};

/// One of so many damaged logs is mended; that takes longer than to find it damaged.
const MENDED_OF: u64 = 4;

/// What became of a damaged log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was not opened.
    Refused,
    /// It was opened, and everything in it is right.
    Harmless,
}

/// One bit anywhere in the log's folder, before the log is opened: what is found then was written,
/// and no segment but the last may lose anything. `None` when there is nothing to damage.
pub fn check_anywhere(
    left: &SimDisk,
    facts: &Facts,
    recording: &Recording,
    at: usize,
    random: &mut Random,
) -> Result<Option<Outcome>, String> {
    let disk = SimDisk::of_files(left.files());
    let mut files = left.files();
    files.retain(|(path, bytes)| path.parent() == Some(Path::new(LOG_DIR)) && !bytes.is_empty());
    if files.is_empty() {
        return Ok(None);
    }
    let (path, bytes) = &files[random.below(files.len() as u64) as usize];
    let offset = random.below(bytes.len() as u64);
    assert!(disk.flip_bit(path, offset, random.below(8) as u8));
    let place = format!("a flipped bit at {offset} of {}", path.display());
    match try_open(&disk, recording, None) {
        Err(StoreError::Corrupt { .. } | StoreError::Decode { .. }) => Ok(Some(Outcome::Refused)),
        Err(error) => Err(format!("{place}: {error}")),
        Ok(_) if is_in_whole_segment(&files, path, offset, facts.begin_physical) => Err(format!(
            "{place}, which another segment follows, is not seen"
        )),
        Ok((found, ..)) => {
            check_facts(&found, &recording.history, at)
                .map_err(|problem| format!("{place}: {problem}"))?;
            Ok(Some(Outcome::Harmless))
        }
    }
}

/// Whether this is a place within the entries of a segment that another one follows.
fn is_in_whole_segment(
    files: &[(PathBuf, Vec<u8>)],
    path: &Path,
    offset: u64,
    begin_physical: u64,
) -> bool {
    let Some(base) = base_of(path).filter(|base| *base >= begin_physical) else {
        return false;
    };
    let bases = files.iter().filter_map(|(path, _)| base_of(path));
    let next = bases.filter(|other| *other > base).min();
    next.is_some_and(|next| base + offset < next)
}

fn base_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let is_segment = name.len() == 20 && name.bytes().all(|byte| byte.is_ascii_digit());
    is_segment.then(|| name.parse().ok()).flatten()
}

/// One bit within an entry that a start has found, and so has made durable: the next start refuses
/// the log and changes nothing, and it can be mended from a peer. `None` when it has no entry.
pub fn check_found(
    recovered: &SimDisk,
    facts: &Facts,
    recording: &Recording,
    random: &mut Random,
) -> Result<Option<Outcome>, String> {
    let Some(last) = facts.entries.len().checked_sub(1) else {
        return Ok(None);
    };
    let number = random.below(last as u64 + 1) as usize;
    let entry = &facts.entries[number];
    let length = entry.end_physical() - entry.physical_offset;
    let physical = entry.physical_offset + random.below(length);
    let disk = SimDisk::of_files(recovered.files());
    let files = disk.files();
    let segments = files.iter().filter_map(|(path, _)| base_of(path));
    let base = segments.filter(|base| *base <= physical).max().unwrap_or(0);
    let path = Path::new(LOG_DIR).join(format!("{base:020}"));
    assert!(disk.flip_bit(&path, physical - base, random.below(8) as u8));
    let before = disk.files();
    match try_open(&disk, recording, None) {
        Err(StoreError::Corrupt { .. }) if disk.files() == before => {
            if random.below(MENDED_OF) == 0 {
                mending::check(&disk, recovered, (facts, number), recording, random)
                    .map_err(|problem| format!("damage at {physical}: {problem}"))?;
            }
            Ok(Some(Outcome::Refused))
        }
        Err(StoreError::Corrupt { .. }) => Err(format!(
            "damage at {physical} is refused, but files were changed"
        )),
        Err(error) => Err(format!("damage at {physical}: {error}")),
        Ok((found, ..)) => Err(format!(
            "damage at {physical} of {} entries leaves {}",
            last + 1,
            found.entries.len()
        )),
    }
}
