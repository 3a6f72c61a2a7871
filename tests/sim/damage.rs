//! Damage to the logs on the disks of a cluster, never to one place on two of them: then nobody would
//! have it any more. Nor to what is so new that a node does not know for certain that it was synced:
//! after a power cut such damage looks like a torn write.

use std::path::PathBuf;

use super::cluster::Cluster;
use super::node::Node;
use super::random::Random;

/// Addresses are dealt to the nodes in stripes of this size; only the middle of a stripe is damaged, so
/// that no entry is damaged on two nodes. Unit: bytes.
const STRIPE_BYTES: u64 = 8_192;
/// What is left alone at both ends of a stripe. Unit: bytes.
const MARGIN_BYTES: u64 = 2_048;
/// The end of the log is damaged on the first node alone: who loses it does not vote until it is back,
/// and the other two must be enough. Unit: bytes.
const END_BYTES: u64 = 32_768;
/// Size of a block that is written to the wrong place. Unit: bytes.
const BLOCK_BYTES: u64 = 512;
/// How often a place is drawn until one may be damaged.
const TRIES: u32 = 200;

/// Turns some bits over at one place of a node's log; false when there is none yet.
pub(super) fn flip(random: &mut Random, cluster: &mut Cluster, at: usize) -> bool {
    let Some((path, offset)) = place(random, cluster, at) else {
        return false;
    };
    cluster.nodes[at].log_damaged = true;
    for _ in 0..=random.below(3) {
        let near = offset + random.below(64);
        let bit = random.below(8) as u8;
        cluster.nodes[at].disk().flip_bit(&path, near, bit);
    }
    true
}

/// Changes every byte of a block of a node's log; false when there is none yet.
pub(super) fn overwrite(random: &mut Random, cluster: &mut Cluster, at: usize) -> bool {
    let Some((path, offset)) = place(random, cluster, at) else {
        return false;
    };
    cluster.nodes[at].log_damaged = true;
    for byte in 0..BLOCK_BYTES {
        let bit = random.below(8) as u8;
        cluster.nodes[at].disk().flip_bit(&path, offset + byte, bit);
    }
    true
}

/// A place in the log of a node that is damaged nowhere else, in a file.
fn place(random: &mut Random, cluster: &Cluster, at: usize) -> Option<(PathBuf, u64)> {
    let folder = Node::segments();
    let named = cluster.nodes[at].disk().files().into_iter();
    let segments: Vec<(u64, PathBuf, u64)> = named
        .filter(|(path, _)| path.parent() == Some(&folder))
        .filter_map(|(path, bytes)| {
            let base = path.file_name()?.to_str()?.parse().ok()?;
            // What is filled ahead is no log.
            let end = bytes.iter().rposition(|byte| *byte != 0)? as u64 + 1;
            Some((base, path, end))
        })
        .collect();
    let (newest, _, newest_end) = segments.last()?;
    let end = newest + newest_end;
    let known_as_synced = cluster.nodes[at].synced_watermark();
    for _ in 0..TRIES {
        let (base, path, length) = &segments[random.below(segments.len() as u64) as usize];
        let offset = random.below(*length);
        let physical = base + offset;
        let owner = (physical / STRIPE_BYTES) as usize % cluster.nodes.len();
        let within = physical % STRIPE_BYTES;
        let in_middle = (MARGIN_BYTES..STRIPE_BYTES - MARGIN_BYTES).contains(&within);
        let at_end = physical + END_BYTES > end;
        let is_known = physical + BLOCK_BYTES < known_as_synced;
        if owner == at && in_middle && is_known && (at == 0 || !at_end) {
            return Some((path.clone(), offset));
        }
    }
    None
}
