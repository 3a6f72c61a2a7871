//! Starts of a node whose data folder is damaged, with peers that have purged what is damaged.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use raftmq_state::State;
use raftmq_store::{EntryKind, LogId, NewEntry, StoredEntry, index::IndexUnit};
use raftmq_tests::sim::disk::SimDisk;

use super::*;
use crate::{
    checkpoint::{Job, MembershipRecord},
    config::Surroundings,
    net::memory::MemoryNet,
};

const ENTRIES: u64 = 300;
const PAYLOAD_BYTES: usize = 200;
const SEGMENT_BYTES: u64 = 8192;
/// Index of the newest checkpoint from which a restart can begin.
const CHECKPOINT: u64 = 250;

fn config(id: u64) -> BrokerConfig {
    let text = format!(
        "storePathRootDir=/node\nenableDLegerCommitLog=true\ndLegerSelfId=n{id}\n\
         dLegerPeers=n0-127.0.0.1:1;n1-127.0.0.1:2;n2-127.0.0.1:3\ncommitLogPreallocateBytes=0\n"
    );
    let surroundings = Surroundings {
        home: PathBuf::from("/"),
        host_name: "machine".to_owned(),
        local_ip: "127.0.0.1".to_owned(),
    };
    let (mut config, _) = BrokerConfig::parse_in(&text, "broker.conf", &surroundings).unwrap();
    config.segment_bytes = SEGMENT_BYTES;
    config
}

/// A data folder on a disk of its own.
struct Node {
    config: BrokerConfig,
    disk: SimDisk,
}

impl Node {
    /// Node `id` with a whole log that all of them have, roll checkpoints at the end of each segment up to
    /// `checkpoint`, and one from which a restart can begin.
    fn new(id: u64, checkpoint: u64) -> Self {
        let node = Self {
            config: config(id),
            disk: SimDisk::default(),
        };
        let opened = node.open();
        for index in 0..ENTRIES {
            let before = opened.log.last_id();
            let end = opened.log.max_physical();
            opened
                .log
                .append(vec![entry(index)], Box::new(|_| ()))
                .unwrap();
            opened.log.flush().unwrap();
            if index <= checkpoint && opened.log.is_segment_base(end) {
                let Some(before) = before else { continue };
                write_checkpoint(&opened, before, true);
            }
            if index == checkpoint {
                write_checkpoint(&opened, opened.log.last_id().unwrap(), false);
            }
        }
        opened.log.close();
        node
    }

    fn arc(&self) -> Arc<dyn Disk> {
        Arc::new(self.disk.clone())
    }

    fn open(&self) -> Opened {
        open_store(&self.config, self.arc()).unwrap()
    }

    /// Purges up to the first roll checkpoint behind an address.
    fn purge_behind(&self, physical: u64) {
        let opened = self.open();
        let rolls = opened.checkpoints.rolls();
        let roll = rolls.iter().find(|roll| roll.physical_offset > physical);
        opened.log.purge_upto(roll.unwrap().id).unwrap();
    }

    fn flip(&self, folder: &str, name: &str, offset: u64) {
        let path = Path::new("/node").join(folder).join(name);
        assert!(self.disk.flip_bit(&path, offset, 3), "{}", path.display());
    }

    /// Damages the first header of a segment.
    fn flip_first_header(&self, base: u64) {
        self.flip("commitlog", &format!("{base:020}"), 9);
    }
}

fn entry(index: u64) -> NewEntry {
    NewEntry {
        id: LogId {
            term: 1,
            node: 0,
            index,
        },
        kind: EntryKind::Normal,
        count: 1,
        payload: Bytes::from(vec![index as u8; PAYLOAD_BYTES]),
    }
}

/// A checkpoint; one for a purge is without its consume queue, as those are from which no restart
/// begins any more.
fn write_checkpoint(opened: &Opened, id: LogId, roll: bool) {
    let index = &opened.index;
    let (_, next) = index.bounds(1);
    let unit = IndexUnit {
        physical_offset: opened.log.max_physical(),
        size: 1,
        tags_code: 0,
        store_timestamp_ms: 1,
    };
    index.append(&[(1, next, unit)]);
    let frozen = index.freeze();
    if roll {
        index.append(&[(1, next + 1, unit)]);
        index.freeze();
    }
    let job = Job {
        id,
        state: State::new().encode(),
        membership: MembershipRecord::default(),
        index: frozen,
        last_store_timestamp_ms: 1,
        roll,
    };
    let written = opened.checkpoints.write(job, &opened.log, index);
    written.unwrap();
}

fn entries(opened: &Opened) -> Vec<StoredEntry> {
    let log = &opened.log;
    log.read(log.first_index(), u64::MAX, u64::MAX).unwrap()
}

/// Bases of the segments of a whole log.
fn bases() -> Vec<u64> {
    let opened = Node::new(0, CHECKPOINT).open();
    let bases = opened.log.segment_bases();
    assert!(bases.len() > 8, "{bases:?}");
    bases
}

/// Starts `node` while these peers serve ranges; the others cannot be reached. `None`: it does not
/// start within a minute.
async fn start(node: &Node, peers: &[&Node]) -> Option<Result<Opened, RunError>> {
    let memory = MemoryNet::default();
    let net: Arc<dyn Net> = Arc::new(memory);
    let metrics = Arc::new(Metrics::new());
    let mut servers = Vec::new();
    for peer in peers {
        let folder = read_folder(&peer.config, &peer.arc()).unwrap();
        let served = RepairPeers::before_raft(
            (&peer.config.cluster_name, &peer.config.raft),
            &folder.identity.incarnation,
            &MembershipRecord::default(),
            &net,
            &metrics,
        );
        let address = ([127, 0, 0, 1], peer.config.raft.self_id as u16).into();
        let listener = net.bind(address).await.unwrap();
        let source = RepairSource {
            ranges: RangeSource::new(peer.arc(), &peer.config.store_commitlog),
            checkpoints: folder.checkpoints,
        };
        servers.push(served.unwrap().serve(listener, source));
    }
    let address = ([127, 0, 0, 1], node.config.raft.self_id as u16).into();
    let listener = net.bind(address).await.unwrap();
    let (_stop, shutdown) = watch::channel(false);
    let disk = node.arc();
    let opening = open(&node.config, &disk, &net, listener, &metrics, shutdown);
    let opened = tokio::time::timeout(Duration::from_secs(60), opening).await;
    let opened = opened.ok()?;
    Some(opened.map(|opened| opened.unwrap().0))
}

/// What stood behind `from` of a whole log is all there, and the node may vote.
fn assert_complete(opened: &Opened, from: u64) {
    let whole = entries(&Node::new(0, CHECKPOINT).open());
    let kept = entries(opened);
    let expected = whole
        .into_iter()
        .filter(|entry| entry.physical_offset >= from);
    let expected: Vec<StoredEntry> = expected.collect();
    assert!(!expected.is_empty() && kept.ends_with(&expected));
    assert!(!opened.log.is_guarded());
}

#[tokio::test(start_paused = true)]
async fn damage_before_the_checkpoint_that_one_peer_has_purged_costs_nothing_behind_it() {
    let bases = bases();
    let (peer, node) = (Node::new(0, CHECKPOINT), Node::new(1, CHECKPOINT));
    peer.purge_behind(bases[3]);
    node.flip_first_header(bases[2]);
    let opened = start(&node, &[&peer]).await.expect("a start").unwrap();
    assert_complete(&opened, bases[3]);
    assert_eq!(opened.applied.unwrap().index, CHECKPOINT);
    drop(opened);
    assert_complete(&node.open(), bases[3]);
}

#[tokio::test(start_paused = true)]
async fn damage_behind_the_checkpoint_that_peers_have_purged_is_covered_by_one_of_theirs() {
    let bases = bases();
    for (checkpoint, damaged) in [(60, 3), (60, 5), (20, 1)] {
        let (peer, node) = (Node::new(0, CHECKPOINT), Node::new(1, checkpoint));
        peer.purge_behind(bases[5]);
        node.flip_first_header(bases[damaged]);
        let opened = start(&node, &[&peer]).await.expect("a start").unwrap();
        assert_complete(&opened, bases[6]);
        let applied = opened.applied.unwrap().index;
        assert_eq!(Some(applied), opened.log.purged_id().map(|id| id.index));
        drop(opened);
        assert_complete(&node.open(), bases[6]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_whole_checkpoint_gets_one_from_a_peer() {
    let bases = bases();
    let (peer, node) = (Node::new(0, CHECKPOINT), Node::new(1, CHECKPOINT));
    for node in [&peer, &node] {
        node.purge_behind(bases[3]);
    }
    for (path, _) in node.disk.files() {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.starts_with("checkpoint-") {
            node.flip("checkpoint", &name, 100);
        }
    }
    assert!(open_store(&node.config, node.arc()).is_err());
    let opened = start(&node, &[&peer]).await.expect("a start").unwrap();
    assert_complete(&opened, bases[4]);
    assert!(opened.applied >= opened.log.purged_id());
    drop(opened);
    assert_complete(&node.open(), bases[4]);
}

#[test]
fn a_node_whose_newest_checkpoint_or_consume_queue_is_damaged_begins_where_its_log_begins() {
    let bases = bases();
    for folder in ["checkpoint", "consumequeue"] {
        let node = Node::new(1, CHECKPOINT);
        node.purge_behind(bases[3]);
        let mut flipped = 0;
        for (path, bytes) in node.disk.files() {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let is_newest = name.ends_with(&format!("-{CHECKPOINT:020}"));
            if path.starts_with(Path::new("/node").join(folder))
                && (is_newest || folder != "checkpoint")
            {
                node.flip(folder, &name, bytes.len() as u64 - 1);
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1, "{folder}");
        let opened = node.open();
        assert_complete(&opened, bases[4]);
        assert_eq!(opened.applied, opened.log.purged_id());
        drop(opened);
        assert_complete(&node.open(), bases[4]);
    }
}
