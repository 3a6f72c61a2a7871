//! What goes wrong in a simulated cluster, when and for how long: one seed decides.
//!
//! Faults overlap as chance has it. What was promised must hold whatever happens; only that
//! something can be done at all is asked for after everything has healed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::classes::{Class, Classes};
use super::cluster::{CLIENTS, Cluster};
use super::damage;
use super::faults::{Operation, Rule};
use super::image::Crash;
use super::membership::Membership;
use super::net::{HostId, Way};
use super::node::End;
use super::random::Random;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A process is killed.
    Kill,
    /// A machine loses its power, and what was not synced is kept, lost or torn.
    PowerCut,
    /// All machines lose their power at once.
    PowerCutOfAll,
    /// A process is asked to stop: a leader hands over.
    Stop,
    /// A process gets no processor time.
    Pause,
    /// A disk takes long for everything.
    SlowDisk,
    /// A machine reaches nobody, and nobody reaches it.
    CutOff,
    /// One machine does not reach another, which reaches it.
    OneWay,
    /// Two machines do not reach each other; the third reaches both.
    Bridge,
    /// Segments take long, and some are lost.
    BadNetwork,
    /// A wall clock jumps.
    ClockJump,
    /// The time of a machine passes faster or slower.
    ClockDrift,
    /// A read, a write or a sync fails.
    InputOutputError,
    /// A disk is full.
    DiskFull,
    /// A leader is asked to hand over.
    Transfer,
    /// A machine is lost with its disk; a new node takes its place.
    Replace,
    /// Bits of the log turn over on a disk.
    BitFlip,
    /// A block of the log holds something else, as after a write that went to the wrong place.
    WrongBlock,
    /// The ports of a machine refuse connections for a moment.
    Refuse,
    /// One copy of a vote, of hints or of marks is damaged.
    CopyDamage,
    /// A hand-over is given up by whoever asked for it.
    DroppedTransfer,
    /// Two nodes are added.
    Grow,
    /// Two nodes are taken away.
    Shrink,
    /// A clock runs at half or at twice the speed of others.
    FarDrift,
}

/// Every kind, and how often it is chosen among all.
const FAULTS: [(Fault, u64); 24] = [
    (Fault::Kill, 6),
    (Fault::PowerCut, 6),
    (Fault::PowerCutOfAll, 2),
    (Fault::Stop, 3),
    (Fault::Pause, 4),
    (Fault::SlowDisk, 3),
    (Fault::CutOff, 4),
    (Fault::OneWay, 4),
    (Fault::Bridge, 3),
    (Fault::BadNetwork, 3),
    (Fault::ClockJump, 2),
    (Fault::ClockDrift, 2),
    (Fault::InputOutputError, 3),
    (Fault::DiskFull, 2),
    (Fault::Transfer, 4),
    (Fault::Replace, 2),
    (Fault::BitFlip, 8),
    (Fault::WrongBlock, 4),
    (Fault::Refuse, 4),
    (Fault::CopyDamage, 4),
    (Fault::DroppedTransfer, 3),
    (Fault::Grow, 3),
    (Fault::Shrink, 3),
    (Fault::FarDrift, 3),
];

/// How something is made good again.
#[derive(Debug, Clone, Copy)]
enum Cure {
    Ways,
    Disk(HostId),
    Pace(HostId),
    Clock(HostId),
}

/// Chooses faults and their ends.
#[derive(Debug)]
pub struct Nemesis {
    random: Random,
    /// Mean time between two faults. Unit: ms.
    mean_ms: u64,
    next_ms: u64,
    /// Whether logs are damaged. Then no disk is lost: that would be two failures at one place.
    damages: bool,
    classes: Classes,
    cures: BTreeMap<(u64, u64), Cure>,
    /// How often each kind was done.
    pub done: BTreeMap<Fault, u64>,
}

impl Nemesis {
    /// A nemesis that does something every `mean_ms` or so.
    pub fn new(seed: u64, mean_ms: u64, damages: bool, classes: Classes) -> Self {
        Self {
            random: Random::new(seed),
            mean_ms,
            next_ms: mean_ms,
            damages,
            classes,
            cures: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    /// Does what is due now.
    pub fn act(&mut self, cluster: &mut Cluster) {
        while let Some(entry) = self.cures.first_entry() {
            if entry.key().0 > cluster.now_ms {
                break;
            }
            let cure = entry.remove();
            self.heal(cluster, cure);
        }
        if cluster.now_ms >= self.next_ms {
            self.next_ms = cluster.now_ms + 1 + self.random.below(2 * self.mean_ms);
            let fault = self.choose();
            if self.strike(cluster, fault) {
                tracing::info!(?fault, "done");
                *self.done.entry(fault).or_default() += 1;
            }
        }
    }

    /// Forgets what was to be made good: somebody has done it.
    pub fn rest(&mut self, cluster: &Cluster) {
        self.cures.clear();
        self.next_ms = cluster.now_ms + 1 + self.random.below(2 * self.mean_ms);
    }

    /// Whether a kind of fault belongs to this life.
    fn is_meant(&self, fault: Fault) -> bool {
        match fault {
            Fault::Refuse => self.classes.has(Class::Refused),
            Fault::CopyDamage => self.classes.has(Class::Copies),
            Fault::DroppedTransfer => self.classes.has(Class::Drops),
            Fault::Grow | Fault::Shrink => self.classes.has(Class::Members),
            Fault::FarDrift => self.classes.has(Class::Drift),
            // A disk that may lose what was acknowledged loses it at one place at a time.
            Fault::PowerCut | Fault::PowerCutOfAll | Fault::InputOutputError => {
                !self.classes.has(Class::Async)
            }
            _ => true,
        }
    }

    fn choose(&mut self) -> Fault {
        let meant = FAULTS
            .into_iter()
            .filter(|(fault, _)| self.is_meant(*fault));
        let meant: Vec<(Fault, u64)> = meant.collect();
        let all: u64 = meant.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.below(all);
        for (fault, weight) in meant {
            if left < weight {
                return fault;
            }
            left -= weight;
        }
        Fault::Kill
    }

    fn later(&mut self, cluster: &Cluster, (least_ms, most_ms): (u64, u64), cure: Cure) {
        let at_ms = cluster.now_ms + least_ms + self.random.below(most_ms - least_ms);
        let number = self.random.number();
        self.cures.insert((at_ms, number), cure);
    }

    fn heal(&mut self, cluster: &mut Cluster, cure: Cure) {
        tracing::info!(?cure, "healed");
        let (Cure::Disk(id) | Cure::Pace(id) | Cure::Clock(id)) = cure else {
            cluster.free_ways();
            return;
        };
        let Some(node) = cluster.nodes.iter_mut().find(|node| node.id == id) else {
            return;
        };
        match cure {
            Cure::Ways => {}
            Cure::Disk(_) => {
                node.full_since_ms = None;
                node.slow = Duration::ZERO;
                node.clear_faults();
            }
            Cure::Pace(_) => node.pace = 1_000,
            Cure::Clock(_) => node.set_clock(0),
        }
    }

    /// Does one thing; false when it makes no sense now.
    fn strike(&mut self, cluster: &mut Cluster, fault: Fault) -> bool {
        let at = self.random.below(cluster.nodes.len() as u64) as usize;
        let other = (at + 1 + self.random.below(cluster.nodes.len() as u64 - 1) as usize)
            % cluster.nodes.len();
        let id = cluster.nodes[at].id;
        if matches!(
            fault,
            Fault::Kill | Fault::PowerCut | Fault::Stop | Fault::Pause
        ) && !cluster.nodes[at].is_up()
        {
            return false;
        }
        match fault {
            Fault::Kill => self.end(cluster, at, End::Killed),
            Fault::PowerCut => {
                let crash = self.crash();
                self.end(cluster, at, End::PowerCut(crash));
            }
            Fault::PowerCutOfAll => {
                for at in 0..cluster.nodes.len() {
                    let crash = self.crash();
                    if cluster.nodes[at].is_up() {
                        self.end(cluster, at, End::PowerCut(crash));
                    }
                }
            }
            Fault::Stop => cluster.nodes[at].ask_to_stop(),
            Fault::Pause => {
                let ms = 100 + self.random.below(6_000);
                cluster.pause(at, ms);
            }
            Fault::SlowDisk => {
                let ms = [5, 50, 600, 5_000][self.random.below(4) as usize];
                cluster.nodes[at].slow = Duration::from_millis(ms);
                self.later(cluster, (1_000, 10_000), Cure::Disk(id));
            }
            Fault::CutOff | Fault::OneWay | Fault::Bridge | Fault::BadNetwork => {
                self.strike_network(cluster, fault, at, other);
                self.later(cluster, (500, 12_000), Cure::Ways);
            }
            Fault::ClockJump => {
                let ms = self.random.below(1_200_000) as i64 - 600_000;
                cluster.nodes[at].set_clock(ms);
                self.later(cluster, (5_000, 60_000), Cure::Clock(id));
            }
            Fault::ClockDrift => {
                cluster.nodes[at].pace = 900 + self.random.below(200);
                self.later(cluster, (5_000, 60_000), Cure::Pace(id));
            }
            Fault::InputOutputError => self.fail_operation(cluster, at),
            Fault::DiskFull => {
                let disk = cluster.nodes[at].disk();
                let room = self.random.below(100_000);
                disk.set_quota(Some(disk.used_bytes() + room));
                cluster.nodes[at].full_since_ms = Some(cluster.now_ms);
                self.later(cluster, (2_000, 20_000), Cure::Disk(id));
            }
            // Another one that is lost meanwhile may be one too many.
            Fault::Replace if self.damages || !Membership::is_complete(cluster) => return false,
            Fault::Replace => return cluster.replace(at),
            Fault::BitFlip | Fault::WrongBlock if !self.damages => return false,
            Fault::BitFlip => return damage::flip(&mut self.random, cluster, at),
            Fault::WrongBlock => return damage::overwrite(&mut self.random, cluster, at),
            further => return self.strike_further(cluster, further, at),
        }
        true
    }

    /// Hand-overs, and the faults of classes that not every life has.
    fn strike_further(&mut self, cluster: &mut Cluster, fault: Fault, at: usize) -> bool {
        let id = cluster.nodes[at].id;
        match fault {
            Fault::Refuse => {
                let ms = 2 + self.random.below(1_500);
                cluster.network.refuse_until(id, cluster.now_ms + ms);
            }
            Fault::Transfer => {
                let to = self.random.once_in(2).then(|| cluster.nodes[at].raft_id());
                for node in &cluster.nodes {
                    node.administrate(|admin| async move {
                        // Only the leader can do it.
                        let _ = admin.transfer_leader(to).await;
                    });
                }
            }
            Fault::CopyDamage => return damage::copy(&mut self.random, cluster, at),
            Fault::DroppedTransfer => {
                let after = Duration::from_millis(self.random.below(100));
                let to = self.random.once_in(2).then(|| cluster.nodes[at].raft_id());
                for node in &cluster.nodes {
                    node.administrate_for(after, move |admin| async move {
                        // Nobody waits for the answer.
                        let _ = admin.transfer_leader(to).await;
                    });
                }
            }
            Fault::Grow | Fault::Shrink if !Membership::is_complete(cluster) => return false,
            Fault::Grow => return cluster.nodes.len() == 3 && cluster.grow(2),
            Fault::Shrink => return self.shrink(cluster),
            Fault::FarDrift => {
                cluster.nodes[at].pace = if self.random.once_in(2) { 500 } else { 2_000 };
                self.later(cluster, (5_000, 60_000), Cure::Pace(id));
            }
            _ => return false,
        }
        true
    }

    /// Lets two of five leave. Where logs are damaged only new ones do: others may have the only
    /// whole copy of something.
    fn shrink(&mut self, cluster: &mut Cluster) -> bool {
        if cluster.nodes.len() != 5 || !cluster.leaving.is_empty() {
            return false;
        }
        let first = if self.damages {
            3
        } else {
            self.random.below(4) as usize
        };
        let nodes = &cluster.nodes[first..first + 2];
        cluster.leaving = nodes.iter().map(|node| node.id).collect();
        true
    }

    fn end(&mut self, cluster: &mut Cluster, at: usize, end: End) {
        tracing::info!(node = cluster.nodes[at].id, ?end, "end");
        cluster.nodes[at].kill(end);
        cluster.restart_later(at);
    }

    fn crash(&mut self) -> Crash {
        match self.random.below(6) {
            0 => Crash::Kept,
            1 | 2 => Crash::Lost,
            3 => Crash::Torn {
                at: self.random.below(4) as usize,
                end: self.random.once_in(2),
            },
            _ => Crash::Some(self.random.number()),
        }
    }

    fn strike_network(&mut self, cluster: &Cluster, fault: Fault, at: usize, other: usize) {
        let (own, other) = (cluster.nodes[at].id, cluster.nodes[other].id);
        tracing::info!(own, other, "network");
        let cut = |from: HostId, to: HostId| {
            let way = cluster.network.way(from, to);
            cluster.network.set_way(from, to, Way { cut: true, ..way });
        };
        match fault {
            Fault::CutOff => {
                let clients_too = self.random.once_in(2).then_some(CLIENTS);
                let nodes = cluster.nodes.iter().map(|node| node.id);
                for host in nodes.filter(|id| *id != own).chain(clients_too) {
                    cut(own, host);
                    cut(host, own);
                }
            }
            Fault::OneWay => {
                for host in cluster.nodes.iter().map(|node| node.id) {
                    let meant = host == other || self.random.once_in(2);
                    if meant && host != own {
                        cut(own, host);
                    }
                }
            }
            Fault::Bridge => {
                cut(own, other);
                cut(other, own);
            }
            _ => {
                let most = 5 + self.random.below(150);
                let loses_one_in = [0, 50, 8][self.random.below(3) as usize];
                cluster.spoil_ways(Way {
                    cut: false,
                    latency_ms: (2, most),
                    loses_one_in,
                });
            }
        }
    }

    fn fail_operation(&mut self, cluster: &mut Cluster, at: usize) {
        let operation =
            [Operation::Read, Operation::Write, Operation::Sync][self.random.below(3) as usize];
        let path =
            ["", "commitlog", "vote", "checkpoint", "consumequeue"][self.random.below(5) as usize];
        cluster.nodes[at].disk().fail(Rule {
            operation,
            path: path.to_owned(),
            after: self.random.below(20),
            times: 1 + self.random.below(2),
        });
        let id = cluster.nodes[at].id;
        self.later(cluster, (1_000, 10_000), Cure::Disk(id));
    }
}
