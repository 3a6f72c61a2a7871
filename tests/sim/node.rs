//! One simulated machine with its disk, and the broker process on it while one runs.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use raftmq::clock::Clock;
use raftmq::config::{BrokerConfig, FlushDiskType, Surroundings};
use raftmq::host::{AppliedEntry, Host, Simulation, simulate};
use raftmq::http::AdminOps;
use raftmq::status::RaftStatus;
use raftmq_store::{Disk, LogId, synced_watermark};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::BROKER_NAME;
use super::disk::{Change, SimDisk};
use super::image::{Crash, Standing};
use super::ledger::Ledger;
use super::net::{HostId, Network, address};
use super::random::Random;
use super::replicas;
use super::vote_file::{Saved, VoteFile};

/// Port of the remoting protocol.
pub const CLIENT_PORT: u16 = 10_911;
const RAFT_PORT: u16 = 40_911;
const NAMESRV_PORT: u16 = 9_876;
/// Wall clock at the beginning of every simulation. Unit: ms since 1970, a round number.
const BEGIN_MS: u64 = 1_700_000_000_000;
/// Folder of the data.
pub(super) const ROOT: &str = "/store";

/// What all nodes of a cluster have in common.
#[derive(Debug, Clone, Copy)]
pub struct NodeSettings {
    /// Nodes of the group.
    pub nodes: HostId,
    /// Size of a segment. Unit: bytes.
    pub segment_bytes: u64,
    /// When a send is acknowledged.
    pub flush: FlushDiskType,
    /// Whether old segments are deleted: when somebody asks, and when the disk is nearly full.
    pub deletes: bool,
    /// Size of the disk. Unit: bytes.
    pub disk_bytes: u64,
    /// Whether an administrator forms the group, instead of its first nodes by themselves.
    pub formed: bool,
    /// Size of the parts of a snapshot, when it is not the usual one. Unit: bytes.
    pub part_bytes: Option<usize>,
}

/// A machine.
#[derive(Debug)]
pub struct Node {
    /// Number of the node, and of its host.
    pub id: HostId,
    settings: NodeSettings,
    network: Network,
    disk: SimDisk,
    standing: Standing,
    last_change: Option<Change>,
    clock: Arc<WallClock>,
    process: Option<Process>,
    random: Random,
    /// How long the disk takes for everything.
    pub slow: Duration,
    /// Of a thousand ms of everybody, so many pass here.
    pub pace: u64,
    pace_rest: u64,
    /// Since when its disk is full.
    pub full_since_ms: Option<u64>,
    ledger: SharedLedger,
    vote_file: VoteFile,
    /// Whether it keeps back its vote, as far as its disk tells.
    guarded: bool,
    /// Whether it waits for an administrator to take it in.
    pub waits: bool,
    /// Whether its log was damaged, in this life or an earlier one.
    pub log_damaged: bool,
    /// Whether a checkpoint of it was damaged, in this life or an earlier one.
    pub checkpoint_damaged: bool,
    /// Whether the process was asked to stop.
    asked_to_stop: bool,
}

/// The ledger of the cluster.
pub type SharedLedger = Arc<Mutex<Ledger>>;

/// The ledger, for a moment.
pub(super) fn lock(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("a panic ends the simulation")
}

/// How a process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnEnd {
    /// What it said.
    pub reason: String,
    /// Whether it was asked to, or its disk gave it a reason.
    pub explained: bool,
}

/// A wall clock that nemeses set.
#[derive(Debug, Default)]
struct WallClock {
    passed_ms: AtomicU64,
    offset_ms: AtomicI64,
}

impl Clock for WallClock {
    fn now_ms(&self) -> u64 {
        let now = BEGIN_MS + self.passed_ms.load(Ordering::Relaxed);
        now.saturating_add_signed(self.offset_ms.load(Ordering::Relaxed))
    }

    fn local_offset_ms(&self) -> u64 {
        0
    }
}

struct Process {
    runtime: Runtime,
    kernel: Rc<Kernel>,
    main: JoinHandle<Result<(), raftmq::RunError>>,
    shutdown: watch::Sender<bool>,
    admin: watch::Receiver<Option<Arc<dyn AdminOps>>>,
    /// Until when its clock has run.
    now: Instant,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Process")
    }
}

/// The operating system under one process.
struct Kernel {
    random: RefCell<Random>,
    slow: Cell<Duration>,
    disk: SimDisk,
    network: Network,
    host: HostId,
    ledger: SharedLedger,
    part_bytes: Option<usize>,
    /// Why the process ended itself, and how many changes its disk had seen by then.
    ended: RefCell<Option<(String, usize)>>,
}

impl Simulation for Kernel {
    fn number(&self) -> u64 {
        self.random.borrow_mut().number()
    }

    fn disk_pause(&self) -> Duration {
        self.slow.get()
    }

    fn end_process(&self, reason: &str) {
        let mut ended = self.ended.borrow_mut();
        if ended.is_none() {
            *ended = Some((reason.to_owned(), self.disk.changes_count()));
            self.network.stop(self.host, true);
        }
    }

    fn snapshot_part_bytes(&self) -> Option<usize> {
        self.part_bytes
    }

    fn applied(&self, entry: AppliedEntry<'_>) {
        if self.ended.borrow().is_none() {
            lock(&self.ledger).applied(self.host, &entry);
        }
    }

    fn acknowledgeable(&self, first: LogId, last: LogId) {
        lock(&self.ledger).acknowledgeable(self.host, first, last);
    }
}

/// How a process is ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `kill -9`: what was written is still there.
    Killed,
    /// The machine loses its power; what was not synced is there as this says.
    PowerCut(Crash),
}

impl Node {
    /// A machine with an empty disk that is switched off.
    pub fn new(
        id: HostId,
        settings: NodeSettings,
        (network, ledger): (&Network, &SharedLedger),
        seed: u64,
    ) -> Self {
        lock(ledger).forget(id);
        let (disk, standing) = Standing::settled([]);
        disk.set_quota(Some(settings.disk_bytes));
        Self {
            id,
            settings,
            network: network.clone(),
            disk,
            standing,
            last_change: None,
            clock: Arc::default(),
            process: None,
            random: Random::new(seed),
            slow: Duration::ZERO,
            pace: 1_000,
            pace_rest: 0,
            full_since_ms: None,
            ledger: Arc::clone(ledger),
            vote_file: VoteFile::default(),
            guarded: false,
            waits: settings.formed || id > settings.nodes,
            log_damaged: false,
            checkpoint_damaged: false,
            asked_to_stop: false,
        }
    }

    /// The address for clients.
    pub fn client_address(&self) -> String {
        SocketAddr::new(address(self.id), CLIENT_PORT).to_string()
    }

    /// Its disk as programs see it.
    pub fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Folder of the consume queue.
    pub fn consume_queue() -> PathBuf {
        Path::new(ROOT).join("consumequeue")
    }

    /// Folder of the checkpoints.
    pub fn checkpoints() -> PathBuf {
        Path::new(ROOT).join("checkpoint")
    }

    /// Size of a segment. Unit: bytes.
    pub fn segment_bytes(&self) -> u64 {
        self.settings.segment_bytes
    }

    /// Folder of the segments.
    pub fn segments() -> PathBuf {
        Path::new(ROOT).join("commitlog")
    }

    /// Whether the node keeps back its vote, as far as its disk tells.
    pub fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// Whether a process runs.
    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Sets the wall clock this far from everybody's. Unit: ms.
    pub fn set_clock(&self, offset_ms: i64) {
        self.clock.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    fn config(&self) -> BrokerConfig {
        let peer = |id: HostId| format!("n{id}-{}", SocketAddr::new(address(id), RAFT_PORT));
        let first = 1..=self.settings.nodes;
        let formation = if self.waits { "admin" } else { "peers" };
        let own = (!first.contains(&self.id)).then_some(self.id);
        let peers: Vec<String> = first.chain(own).map(peer).collect();
        let lines = [
            format!("brokerName={BROKER_NAME}"),
            format!("brokerIP1={}", address(self.id)),
            format!("listenPort={CLIENT_PORT}"),
            format!("embeddedNamesrvPort={NAMESRV_PORT}"),
            "httpPort=0".to_owned(),
            format!("storePathRootDir={ROOT}"),
            "enableDLegerCommitLog=true".to_owned(),
            format!("dLegerGroup={BROKER_NAME}"),
            format!("dLegerPeers={}", peers.join(";")),
            format!("dLegerSelfId=n{}", self.id),
            format!("raftFormGroup={formation}"),
            format!(
                "fileReservedTime={}",
                if self.settings.deletes { 0 } else { 720 }
            ),
            format!("cleanFileForciblyEnable={}", self.settings.deletes),
        ];
        let surroundings = Surroundings {
            home: PathBuf::from("/"),
            host_name: format!("n{}", self.id),
            local_ip: address(self.id).to_string(),
        };
        let parsed = BrokerConfig::parse_in(&lines.join("\n"), "broker.conf", &surroundings);
        let (mut config, _) = parsed.expect("a good configuration");
        // Smaller than a file of properties may say, so that there are many of them.
        config.segment_bytes = self.settings.segment_bytes;
        config.preallocate_bytes = self.settings.segment_bytes / 2;
        config.flush = self.settings.flush;
        config
    }

    /// Starts the process.
    pub fn start(&mut self) {
        assert!(self.process.is_none(), "a process runs");
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime without drivers");
        let kernel = Rc::new(Kernel {
            random: RefCell::new(Random::new(self.random.number())),
            slow: Cell::new(self.slow),
            disk: self.disk.clone(),
            network: self.network.clone(),
            host: self.id,
            ledger: Arc::clone(&self.ledger),
            part_bytes: self.settings.part_bytes,
            ended: RefCell::new(None),
        });
        let host = Host {
            net: self.network.start(self.id),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            disk: Arc::new(self.disk.clone()) as Arc<dyn Disk>,
            admin: watch::Sender::new(None),
        };
        let admin = host.admin.subscribe();
        let (shutdown, stopping) = watch::channel(false);
        let config = self.config();
        let (main, now) = simulate(Rc::clone(&kernel) as Rc<dyn Simulation>, || {
            let _entered = runtime.enter();
            let main = runtime.spawn(raftmq::run_broker_on(host, config, stopping));
            (main, Instant::now())
        });
        self.process = Some(Process {
            runtime,
            kernel,
            main,
            shutdown,
            admin,
            now,
        });
    }

    /// The disk does what it is asked for again.
    pub fn clear_faults(&self) {
        self.disk.clear_faults();
        self.disk.set_quota(Some(self.settings.disk_bytes));
    }

    /// What the process knows about its group, when it serves.
    pub fn status(&self) -> Option<Arc<RaftStatus>> {
        let admin = self.process.as_ref()?.admin.borrow();
        let status = admin.as_ref()?.status();
        let status = Arc::clone(&status.borrow());
        Some(status)
    }

    /// Lets the process do something for an administrator, whatever comes of it.
    pub fn administrate<T: Future<Output = ()> + Send + 'static>(
        &self,
        work: impl FnOnce(Arc<dyn AdminOps>) -> T,
    ) {
        if let Some(process) = &self.process
            && let Some(admin) = process.admin.borrow().clone()
        {
            process.runtime.spawn(work(admin));
        }
    }

    /// As [`Node::administrate`], but it is given up after this time.
    pub fn administrate_for<T: Future<Output = ()> + Send + 'static>(
        &self,
        most: Duration,
        work: impl FnOnce(Arc<dyn AdminOps>) -> T + Send + 'static,
    ) {
        self.administrate(move |admin| async move {
            // Nobody asks what came of it.
            let _ = tokio::time::timeout(most, work(admin)).await;
        });
    }

    /// Its number in the Raft group: one more than in its name.
    pub fn raft_id(&self) -> u64 {
        u64::from(self.id) + 1
    }

    /// The address for other nodes.
    pub fn raft_address(&self) -> String {
        SocketAddr::new(address(self.id), RAFT_PORT).to_string()
    }

    /// Asks the process to stop in good order; it is given time by [`Node::run`].
    pub fn ask_to_stop(&mut self) {
        if let Some(process) = &self.process {
            self.asked_to_stop = true;
            process.shutdown.send_replace(true);
        }
    }

    /// Lets the process do what there is to do in the next `ms`. How it ended, if it did.
    pub fn run(&mut self, ms: u64) -> Option<OwnEnd> {
        self.clock.passed_ms.fetch_add(ms, Ordering::Relaxed);
        let here = ms * self.pace + self.pace_rest;
        self.pace_rest = here % 1_000;
        let process = self.process.as_mut()?;
        process.now += Duration::from_millis(here / 1_000);
        process.kernel.slow.set(self.slow);
        let until = process.now;
        let kernel = Rc::clone(&process.kernel) as Rc<dyn Simulation>;
        simulate(kernel, || {
            process
                .runtime
                .block_on(async { tokio::time::sleep_until(until).await });
        });
        let own = process.kernel.ended.borrow().clone();
        if let Some((reason, changes)) = own {
            return Some(self.end_of_its_own(reason, Some(changes)));
        }
        if process.main.is_finished() {
            let result = process.runtime.block_on(&mut process.main);
            let result = result.expect("a panic ends the simulation");
            let reason = result.map_or_else(|error| error.to_string(), |()| "stopped".to_owned());
            return Some(self.end_of_its_own(reason, None));
        }
        self.settle();
        None
    }

    fn end_of_its_own(&mut self, reason: String, changes: Option<usize>) -> OwnEnd {
        let explained = is_explained(
            &reason,
            self.asked_to_stop,
            self.disk.failures(),
            self.log_damaged,
        );
        self.end(End::Killed, changes);
        OwnEnd { reason, explained }
    }

    /// Ends the process from outside.
    pub fn kill(&mut self, end: End) {
        self.end(end, None);
    }

    /// Takes the process away and what it had in memory; of the changes to its disk only the first
    /// `changes` count.
    fn end(&mut self, end: End, changes: Option<usize>) {
        self.network.stop(self.id, end == End::Killed);
        if changes.is_none() {
            self.settle();
        }
        let ended = self.process.take();
        if let Some(changes) = changes {
            let all = self.disk.take_changes();
            self.take_in(all.into_iter().take(changes));
        }
        if let Some(process) = ended {
            let kernel = Rc::clone(&process.kernel) as Rc<dyn Simulation>;
            simulate(kernel, || drop(process));
        }
        (self.disk, self.standing) = match end {
            End::Killed => self.standing.resume(),
            End::PowerCut(crash) => {
                let nothing = Change::SyncDir(PathBuf::new());
                let last = self.last_change.as_ref().unwrap_or(&nothing);
                Standing::settled(self.standing.after(crash, last).files())
            }
        };
        self.disk.set_quota(Some(self.settings.disk_bytes));
        self.last_change = None;
        self.vote_file.restart();
        self.asked_to_stop = false;
    }

    /// Takes the changes so far into what a crash is made from.
    pub fn settle(&mut self) {
        let changes = self.disk.take_changes();
        self.take_in(changes.into_iter());
    }

    fn take_in(&mut self, changes: impl Iterator<Item = Change>) {
        let mut saved = Vec::new();
        for change in changes {
            saved.extend(self.vote_file.see(&change));
            self.standing.apply(&change);
            self.last_change = Some(change);
        }
        for saved in saved {
            match saved {
                Saved::Vote(vote) => lock(&self.ledger).voted(self.id, vote),
                Saved::Guarded(guarded) => {
                    if self.guarded && !guarded {
                        self.guard_ended();
                    }
                    self.guarded = guarded;
                }
            }
        }
    }

    /// Shows the ledger what the log holds now.
    fn guard_ended(&self) {
        // A log that is damaged elsewhere meanwhile is not looked at.
        if let Ok((purged, terms)) = replicas::terms(self) {
            lock(&self.ledger).guard_ended(self.id, purged, &terms);
        }
    }

    /// Address below which the log knows that it was synced, even if the power goes now.
    pub fn synced_watermark(&self) -> u64 {
        let nothing = Change::SyncDir(PathBuf::new());
        let disk = self.standing.after(Crash::Lost, &nothing);
        synced_watermark(&disk, &Self::segments()).unwrap_or(0)
    }

    /// Changes a file of a machine that is switched off; what it holds is durable.
    pub fn edit_files(&mut self, edit: impl FnOnce(&mut Vec<(PathBuf, Vec<u8>)>)) {
        assert!(self.process.is_none(), "a process runs");
        let mut files = self.disk.files();
        edit(&mut files);
        (self.disk, self.standing) = Standing::settled(files);
        self.disk.set_quota(Some(self.settings.disk_bytes));
    }

    /// Puts older files in the place of those of a machine that is switched off. What it said since
    /// then it does not know.
    pub fn restore(&mut self, older: Vec<(PathBuf, Vec<u8>)>) {
        self.edit_files(|files| *files = older);
        self.guarded = false;
        lock(&self.ledger).forget(self.id);
    }
}

/// Whether a process may have ended so: asked to, or after its disk has failed it. A log that was
/// damaged may be beyond mending as long as others are away.
fn is_explained(reason: &str, asked: bool, failures: u64, log_damaged: bool) -> bool {
    asked && reason == "stopped" || failures > 0 || log_damaged
}

#[test]
fn a_process_that_ends_without_a_reason_is_found() {
    assert!(!is_explained("raft failed", false, 0, false));
    assert!(!is_explained("stopped", false, 0, false));
    assert!(!is_explained("raft failed", true, 0, false));
    assert!(is_explained("stopped", true, 0, false));
    assert!(is_explained("the log cannot be written", false, 1, false));
    assert!(is_explained("raft failed", false, 0, true));
}
