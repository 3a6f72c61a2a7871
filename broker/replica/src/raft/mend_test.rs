//! Damage that is found while Raft runs, with peers that have it, purged it, or never had it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::Path,
};

use bytes::Bytes;
use raftmq_store::{EntryKind, LogConfig, LogId as StoreLogId, NewEntry};
use raftmq_tests::sim::disk::SimDisk;
use tokio::time::timeout;

use super::*;
use crate::{
    checkpoint::Checkpoints,
    config::{GroupFormation, RaftConfig, RaftPeer},
    metrics::Metrics,
    net::{Net, memory::MemoryNet},
    raft::{
        peer::Local,
        repair::{RepairSource, StartServer},
        types::{LogId, Membership, PeerNode, StoredMembership},
    },
};

/// Entry that is damaged at the node.
const DAMAGED: u64 = 30;
const ENTRIES: u64 = 200;

fn id(index: u64) -> StoreLogId {
    StoreLogId {
        term: 1,
        node: 0,
        index,
    }
}

fn open(disk: &SimDisk, entries: u64) -> Arc<CommitLog> {
    let config = LogConfig {
        segment_bytes: 8192,
        tail_bytes: 256,
        preallocate_bytes: 0,
        ..LogConfig::new("/node/commitlog")
    };
    let (log, ..) = CommitLog::open(Arc::new(disk.clone()), config, None).unwrap();
    let entry = |index| NewEntry {
        id: id(index),
        kind: EntryKind::Normal,
        count: 1,
        payload: Bytes::from(vec![index as u8; 200]),
    };
    log.append((0..entries).map(entry).collect(), Box::new(|_| ()))
        .unwrap();
    log.flush().unwrap();
    log
}

/// A node with a damaged entry, and the address of it.
fn damaged(disk: &SimDisk) -> (Arc<CommitLog>, u64) {
    let log = open(disk, ENTRIES);
    let physical = log.read(DAMAGED, DAMAGED + 1, u64::MAX).unwrap()[0].physical_offset;
    let bases = log.segment_bases();
    let base = bases.iter().rev().find(|base| **base <= physical).unwrap();
    let path = Path::new("/node/commitlog").join(format!("{base:020}"));
    assert!(disk.flip_bit(&path, physical - base + 100, 1));
    log.set_repairable(true);
    log.note_damaged(physical);
    (log, physical)
}

fn address(id: u64) -> String {
    format!("127.0.0.1:{id}")
}

/// Node `id` of the members 1 to 3; the configuration names a fourth that is gone for good.
fn peers(id: u64, net: &Arc<dyn Net>) -> RepairPeers {
    let peer = |id: u64| RaftPeer {
        id,
        name: format!("n{}", id - 1),
        address: address(id),
    };
    let raft = RaftConfig {
        group: "group".to_owned(),
        self_id: id,
        self_name: format!("n{}", id - 1),
        peers: (1..=4).map(peer).collect(),
        bind_address: Ipv4Addr::LOCALHOST.into(),
        heartbeat_ms: 75,
        election_min_ms: 225,
        election_max_ms: 375,
        formation: GroupFormation::Peers,
    };
    let metrics = Arc::new(Metrics::new());
    let local = Local::new("cluster", &raft, "", &metrics);
    let node = |id: u64| PeerNode {
        address: address(id),
        incarnation: String::new(),
    };
    let nodes: BTreeMap<u64, PeerNode> = (1..=3).map(|id| (id, node(id))).collect();
    let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).unwrap();
    let stored = StoredMembership::new(Some(LogId::new_term_index(1, 1)), membership);
    local.members.set(&Arc::new(stored));
    RepairPeers::new(local, &raft, net, &metrics)
}

/// Lets node `id` give ranges of `log`.
async fn serve(id: u64, net: &Arc<dyn Net>, log: &CommitLog) -> StartServer {
    let listener = net.bind(address(id).parse().unwrap()).await.unwrap();
    let checkpoints = Checkpoints::open(Arc::new(SimDisk::default()), Path::new("/checkpoint"));
    let source = RepairSource {
        ranges: log.range_source(),
        checkpoints: Arc::new(checkpoints.unwrap()),
    };
    peers(id, net).serve(listener, source)
}

/// Waits a few minutes for it.
async fn comes_true(is_true: impl Fn() -> bool) -> bool {
    let waited = timeout(Duration::from_secs(300), async {
        while !is_true() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    waited.await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn what_members_have_purged_or_never_had_is_gone_whoever_else_is_configured() {
    let net: Arc<dyn Net> = Arc::new(MemoryNet::default());
    let (log, _) = damaged(&SimDisk::default());
    let purged = open(&SimDisk::default(), ENTRIES);
    purged.purge_upto(id(150)).unwrap();
    let behind = open(&SimDisk::default(), DAMAGED - 10);
    let _servers = (serve(2, &net, &purged).await, serve(3, &net, &behind).await);
    let task = tokio::spawn(run(Arc::clone(&log), peers(1, &net)));
    assert!(comes_true(|| log.gone_until() > 0).await);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn what_a_member_that_cannot_be_reached_may_have_is_not_gone() {
    let net: Arc<dyn Net> = Arc::new(MemoryNet::default());
    let (log, _) = damaged(&SimDisk::default());
    let purged = open(&SimDisk::default(), ENTRIES);
    purged.purge_upto(id(150)).unwrap();
    let _server = serve(2, &net, &purged).await;
    let task = tokio::spawn(run(Arc::clone(&log), peers(1, &net)));
    assert!(!comes_true(|| log.gone_until() > 0).await);
    task.abort();
}

#[tokio::test(start_paused = true)]
async fn mending_waits_longer_and_longer_for_space_and_goes_on_when_there_is_some() {
    let net: Arc<dyn Net> = Arc::new(MemoryNet::default());
    let disk = SimDisk::default();
    let (log, physical) = damaged(&disk);
    disk.set_quota(Some(disk.used_bytes()));
    let whole = open(&SimDisk::default(), ENTRIES);
    let _server = serve(2, &net, &whole).await;
    let task = tokio::spawn(run(Arc::clone(&log), peers(1, &net)));
    sleep(Duration::from_secs(60)).await;
    let failures = disk.failures();
    assert!((3..20).contains(&failures), "{failures}");
    disk.set_quota(None);
    assert!(comes_true(|| log.locate_damage(physical).unwrap().is_none()).await);
    task.abort();
}
