//! Damage to the logs on the disks of a cluster, never to one place on two of them: then nobody would
//! have it any more. Nor to what is so new that a node does not know for certain that it was synced:
//! after a power cut such damage looks like a torn write.

use std::path::{Path, PathBuf};

use super::cluster::Cluster;
use super::node::Node;
use super::random::Random;
use super::vote_file;

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
/// Nodes that addresses are dealt to, the first ones; others are never damaged.
const OWNERS: usize = 3;
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

/// Base, path and used bytes of every segment of a node, the oldest first.
pub(super) fn segments(node: &Node) -> Vec<(u64, PathBuf, u64)> {
    let folder = Node::segments();
    let named = node.disk().files().into_iter();
    let used = named
        .filter(|(path, _)| path.parent() == Some(&folder))
        .filter_map(|(path, bytes)| {
            let base = path.file_name()?.to_str()?.parse().ok()?;
            // What is filled ahead is no log.
            let end = bytes.iter().rposition(|byte| *byte != 0)? as u64 + 1;
            Some((base, path, end))
        });
    used.collect()
}

/// A place in the log of a node that is damaged nowhere else, in a file.
fn place(random: &mut Random, cluster: &Cluster, at: usize) -> Option<(PathBuf, u64)> {
    let segments = segments(&cluster.nodes[at]);
    let (newest, _, newest_end) = segments.last()?;
    let end = newest + newest_end;
    let known_as_synced = cluster.nodes[at].synced_watermark();
    for _ in 0..TRIES {
        let (base, path, length) = &segments[random.below(segments.len() as u64) as usize];
        let offset = random.below(*length);
        let physical = base + offset;
        let owner = (physical / STRIPE_BYTES) as usize % OWNERS;
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

/// Damages one copy of a vote, of hints or of marks, if the other one is good for it; false when not.
pub(super) fn copy(random: &mut Random, cluster: &Cluster, at: usize) -> bool {
    let path = Node::segments().join("vote");
    let files = cluster.nodes[at].disk().files();
    let Some((_, content)) = files.iter().find(|(other, _)| *other == path) else {
        return false;
    };
    let (kind, copy) = (random.below(vote_file::KINDS), random.below(2));
    let Some(begin) = vote_file::spare_copy(content, kind, copy) else {
        return false;
    };
    let (offset, bit) = (begin + random.below(64), random.below(8) as u8);
    cluster.nodes[at].disk().flip_bit(&path, offset, bit)
}

/// Turns a bit over in a checkpoint of a node; false when there is none.
pub(super) fn checkpoint(random: &mut Random, cluster: &mut Cluster, at: usize) -> bool {
    let folder = Node::checkpoints();
    let named = cluster.nodes[at].disk().files().into_iter();
    let checkpoints: Vec<(PathBuf, u64)> = named
        .filter(|(path, bytes)| path.parent() == Some(&folder) && !bytes.is_empty())
        .filter(|(path, _)| is_checkpoint(path))
        .map(|(path, bytes)| (path, bytes.len() as u64))
        .collect();
    if checkpoints.is_empty() {
        return false;
    }
    // The oldest one stands for everything that was deleted.
    let newest = random.below(checkpoints.len() as u64) as usize;
    let (path, length) = &checkpoints[if random.once_in(2) { 0 } else { newest }];
    let (offset, bit) = (random.below(*length), random.below(8) as u8);
    tracing::info!(?path, offset, "damaged");
    cluster.nodes[at].checkpoint_damaged = true;
    cluster.nodes[at].disk().flip_bit(path, offset, bit)
}

fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("checkpoint-") && !name.ends_with(".tmp"))
}

/// Damages the first header of the oldest segment of a node that is switched off.
pub(super) fn first_header(random: &mut Random, cluster: &mut Cluster, at: usize) {
    if let Some((_, path, _)) = segments(&cluster.nodes[at]).first() {
        let (offset, bit) = (random.below(32), random.below(8) as u8);
        cluster.nodes[at].log_damaged = true;
        tracing::info!(?path, offset, "damaged");
        cluster.nodes[at].disk().flip_bit(path, offset, bit);
    }
}

/// Damages a block that three nodes have, sealed and equal, on the first two of them; where it is.
pub(super) fn same_place(random: &mut Random, cluster: &mut Cluster) -> Option<(PathBuf, u64)> {
    let own = segments(&cluster.nodes[0]);
    let (sealed, newest) = own.split_at(own.len().checked_sub(1)?);
    let (newest, _, _) = newest.first()?;
    for _ in 0..TRIES {
        let at = random.below(sealed.len().max(1) as u64) as usize;
        let (base, path, _) = sealed.get(at)?;
        let next = own.get(at + 1).map_or(*newest, |(base, ..)| *base);
        let length = (next - base)
            .checked_sub(BLOCK_BYTES)
            .filter(|length| *length > 0)?;
        let offset = random.below(length);
        let all_sealed = cluster.nodes.iter().take(OWNERS).all(|node| {
            let segments = segments(node);
            let has = |base: u64| segments.iter().any(|(other, ..)| *other == base);
            has(*base) && has(next)
        });
        // Nobody has it twice: then it would be gone.
        if all_sealed && is_equal(cluster, path, offset) {
            for node in &mut cluster.nodes[..2] {
                node.log_damaged = true;
                for byte in 0..BLOCK_BYTES {
                    node.disk().flip_bit(path, offset + byte, (byte % 8) as u8);
                }
            }
            tracing::info!(?path, offset, "damaged on two nodes");
            return Some((path.clone(), offset));
        }
    }
    None
}

/// Whether a block is the same on all nodes that still have it, of the first three.
pub(super) fn is_equal(cluster: &Cluster, path: &Path, offset: u64) -> bool {
    let range = offset as usize..(offset + BLOCK_BYTES) as usize;
    let blocks = cluster.nodes.iter().take(OWNERS).filter_map(|node| {
        let files = node.disk().files();
        let (_, bytes) = files.into_iter().find(|(other, _)| other == path)?;
        bytes.get(range.clone()).map(<[u8]>::to_vec)
    });
    let blocks: Vec<Vec<u8>> = blocks.collect();
    blocks.windows(2).all(|pair| pair[0] == pair[1])
}
