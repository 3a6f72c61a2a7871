//! A simulated cluster: nodes, network and clients under one clock, all on the caller's thread.
//!
//! Time passes in steps of two milliseconds. In each, what is due arrives, then the processes do what
//! there is to do, one after the other. What one sends reaches another in a later step, so that the
//! order of the processes within a step has no meaning.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use raftmq::net::Net;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::image::Crash;
use super::log;
use super::membership::Membership;
use super::net::{HostId, Network, Way};
use super::node::{End, Node, NodeSettings, OwnEnd, SharedLedger, lock};
use super::random::Random;

/// How much passes in a step; nothing on the network is faster. Unit: ms.
pub const STEP_MS: u64 = 2;
/// Host of all clients.
pub const CLIENTS: HostId = 100;
/// After how long a process that ended is started again: at least, and at most so much later.
const RESTART_MS: (u64, u64) = (200, 3_000);
/// When a process knows that its disk is full, paused or slow as it may be. Unit: ms.
const FULL_MS: u64 = 10_000;
/// How the reasons of processes begin that could not write their logs.
const LOG_FAILED: &str = "the log cannot be written";
/// Greatest number of a node.
const ID_MAX: HostId = 95;
/// One of so many new nodes gets the id of one that has left.
const RETURNS_ONE_IN: u64 = 3;
/// What they contain then, when it was for want of space.
const NO_SPACE: &str = "no storage space";

/// See the file comment.
#[derive(Debug)]
pub struct Cluster {
    /// Time since the beginning. Unit: ms.
    pub now_ms: u64,
    /// Network.
    pub network: Network,
    /// Nodes; the first has number 1.
    pub nodes: Vec<Node>,
    /// When each node is started again, when it is down.
    restarts_ms: Vec<Option<u64>>,
    /// Until when each node gets no processor time.
    paused_until_ms: Vec<u64>,
    clients: Runtime,
    clients_now: Instant,
    /// Network of the clients.
    pub clients_net: Arc<dyn Net>,
    random: Random,
    /// Addresses for clients.
    pub brokers: Arc<Mutex<Vec<String>>>,
    settings: NodeSettings,
    last_id: HostId,
    /// Ids of nodes that are gone for good.
    retired: Vec<HostId>,
    /// Whether ids of nodes that have left are given to new ones.
    pub returns: bool,
    /// Nodes that shall leave the group, and are then switched off.
    pub leaving: BTreeSet<HostId>,
    /// Why processes ended, of their own accord.
    pub ends: Vec<(u64, HostId, String)>,
    /// Looks after who belongs to the group.
    pub membership: Membership,
    /// What processes must not do and did.
    pub problems: Vec<String>,
    /// What all processes did to the log.
    pub ledger: SharedLedger,
}

impl Cluster {
    /// A cluster whose nodes start at once.
    pub fn new(settings: NodeSettings, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let network = Network::new(random.number());
        let ledger = SharedLedger::default();
        let ids = 1..=settings.nodes;
        let nodes: Vec<Node> = ids
            .map(|id| Node::new(id, settings, (&network, &ledger), random.number()))
            .collect();
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let clients = builder.enable_time().start_paused(true).build();
        let clients = clients.expect("a runtime without drivers");
        let clients_now = {
            let _entered = clients.enter();
            Instant::now()
        };
        let brokers = nodes.iter().map(Node::client_address).collect();
        Self {
            now_ms: 0,
            restarts_ms: vec![Some(0); nodes.len()],
            paused_until_ms: vec![0; nodes.len()],
            nodes,
            clients,
            clients_now,
            clients_net: network.start(CLIENTS),
            brokers: Arc::new(Mutex::new(brokers)),
            settings,
            last_id: settings.nodes,
            retired: Vec::new(),
            returns: false,
            leaving: BTreeSet::new(),
            network,
            random,
            ends: Vec::new(),
            membership: Membership::default(),
            problems: Vec::new(),
            ledger,
        }
    }

    /// Puts a new machine with an empty disk in the place of one, under another node id; false when
    /// there is none left.
    pub fn replace(&mut self, at: usize) -> bool {
        let Some(node) = self.new_node() else {
            return false;
        };
        if self.nodes[at].is_up() {
            self.nodes[at].kill(End::PowerCut(Crash::Lost));
        }
        let old = std::mem::replace(&mut self.nodes[at], node);
        self.retired.push(old.id);
        self.paused_until_ms[at] = 0;
        self.restart_later(at);
        let mut brokers = self.brokers.lock().expect("a panic ends the simulation");
        brokers[at] = self.nodes[at].client_address();
        true
    }

    /// Adds new machines to the group; false when there are no ids left.
    pub fn grow(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some(node) = self.new_node() else {
                return false;
            };
            let mut brokers = self.brokers.lock().expect("a panic ends the simulation");
            brokers.push(node.client_address());
            drop(brokers);
            self.nodes.push(node);
            self.restarts_ms.push(None);
            self.paused_until_ms.push(0);
            self.restart_later(self.nodes.len() - 1);
        }
        true
    }

    fn new_node(&mut self) -> Option<Node> {
        let known = |id: &HostId| {
            let raft_id = u64::from(*id) + 1;
            let statuses = self.nodes.iter().filter_map(Node::status);
            let mut members = statuses.flat_map(|status| {
                let members = status.voters.iter().chain(&status.learners);
                members.map(|member| member.id).collect::<Vec<u64>>()
            });
            members.any(|member| member == raft_id)
        };
        let free = self.retired.iter().position(|id| !known(id));
        let again = self.returns && self.random.once_in(RETURNS_ONE_IN);
        let id = match free.filter(|_| again) {
            Some(at) => self.retired.remove(at),
            None if self.last_id < ID_MAX => {
                self.last_id += 1;
                self.last_id
            }
            None => return None,
        };
        let shared = (&self.network, &self.ledger);
        let mut node = Node::new(id, self.settings, shared, self.random.number());
        node.waits = true;
        Some(node)
    }

    /// Switches off who has left the group.
    fn let_leave(&mut self) {
        if self.leaving.is_empty() || !Membership::is_complete(self) {
            return;
        }
        for id in std::mem::take(&mut self.leaving) {
            let Some(at) = self.nodes.iter().position(|node| node.id == id) else {
                continue;
            };
            self.nodes[at].kill(End::Killed);
            self.nodes.remove(at);
            self.restarts_ms.remove(at);
            self.paused_until_ms.remove(at);
            let mut brokers = self.brokers.lock().expect("a panic ends the simulation");
            brokers.remove(at);
            drop(brokers);
            self.retired.push(id);
        }
    }

    /// Runs something that starts tasks of clients.
    pub fn with_clients<T>(&self, work: impl FnOnce() -> T) -> T {
        let _entered = self.clients.enter();
        work()
    }

    /// Lets a step of time pass.
    pub fn step(&mut self) {
        self.now_ms += STEP_MS;
        let now_ms = self.now_ms;
        lock(&self.ledger).now_ms = now_ms;
        self.network.advance_to(now_ms);
        for at in 0..self.nodes.len() {
            log::at(now_ms, self.nodes[at].id.into());
            if self.restarts_ms[at].is_some_and(|due| due <= now_ms) {
                self.restarts_ms[at] = None;
                self.nodes[at].start();
            }
            // A process that was stopped finds that all this time has passed at once.
            let node = &mut self.nodes[at];
            let ended = if self.paused_until_ms[at] > now_ms {
                None
            } else {
                node.run(STEP_MS)
            };
            if let Some(OwnEnd { reason, explained }) = ended {
                let id = node.id;
                let knew = node.full_since_ms.is_some_and(|at| at + FULL_MS < now_ms);
                if knew && reason.starts_with(LOG_FAILED) && reason.contains(NO_SPACE) {
                    let problem = format!("V5: node {id} ended at {now_ms} ms: {reason}");
                    self.problems.push(problem);
                }
                if !explained {
                    let problem = format!("V6: node {id} ended at {now_ms} ms: {reason}");
                    self.problems.push(problem);
                }
                tracing::info!(reason, "the process has ended by itself");
                self.ends.push((now_ms, id, reason));
                self.restart_later(at);
            }
        }
        log::at(now_ms, 0);
        self.clients_now += std::time::Duration::from_millis(STEP_MS);
        let until = self.clients_now;
        self.clients
            .block_on(async { tokio::time::sleep_until(until).await });
        let mut membership = std::mem::take(&mut self.membership);
        membership.tend(self);
        self.membership = membership;
        self.let_leave();
    }

    /// Lets time pass until `done` or for so long; whether it was done.
    pub fn step_until(&mut self, most_ms: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        for _ in 0..most_ms / STEP_MS {
            if done(self) {
                return true;
            }
            self.step();
        }
        done(self)
    }

    /// Lets a task of clients run to its end, for so long at most.
    pub fn await_client<T: Send + 'static>(
        &mut self,
        most_ms: u64,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let mut task = self.with_clients(|| tokio::spawn(task));
        let finished = self.step_until(most_ms, |_| task.is_finished());
        finished.then(|| {
            let ended = self.clients.block_on(&mut task);
            ended.expect("a panic ends the simulation")
        })
    }

    /// Starts a node that is down after a random while.
    pub fn restart_later(&mut self, at: usize) {
        let after = RESTART_MS.0 + self.random.below(RESTART_MS.1);
        self.restarts_ms[at] = Some(self.now_ms + after);
    }

    /// Starts a node that is down at this time.
    pub fn restart_at(&mut self, at: usize, when_ms: u64) {
        self.restarts_ms[at] = Some(when_ms);
    }

    /// Gives a node no processor time for so long.
    pub fn pause(&mut self, at: usize, ms: u64) {
        self.paused_until_ms[at] = self.now_ms + ms;
    }

    /// Makes every way from one host to another good.
    pub fn free_ways(&self) {
        self.spoil_ways(Way::default());
    }

    /// Makes every way from one host to another like this one.
    pub fn spoil_ways(&self, way: Way) {
        let hosts = || self.nodes.iter().map(|node| node.id).chain([CLIENTS]);
        for from in hosts() {
            for to in hosts() {
                self.network.set_way(from, to, way);
            }
        }
    }

    /// Ends everything that nemeses have set, and starts what is down.
    pub fn heal(&mut self) {
        self.free_ways();
        for at in 0..self.nodes.len() {
            self.paused_until_ms[at] = 0;
            self.nodes[at].slow = std::time::Duration::ZERO;
            self.nodes[at].pace = 1_000;
            self.nodes[at].clear_faults();
            if !self.nodes[at].is_up() && self.restarts_ms[at].is_none() {
                self.restart_later(at);
            }
        }
    }
}
