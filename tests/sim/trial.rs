//! One seed: a cluster lives through faults, heals, and everything that was promised is looked at.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use raftmq::config::FlushDiskType;

use super::classes::{Class, Classes};
use super::cluster::Cluster;
use super::drain::{catch_up, drain};
use super::history::{Outcome, Send};
use super::membership::Membership;
use super::nemesis::Nemesis;
use super::node::{End, Node, NodeSettings, lock};
use super::oracle;
use super::random::Random;
use super::replicas;
use super::scenario::{self, Stage};
use super::workload::{Load, Workload};

/// How long a cluster may take until everything can be done again after all faults have ended.
/// Machines start within 3.2 s; a connection learns within 3 s that nobody is there; a leader takes
/// less than a second. Unit: ms.
const RECOVERY_MS: u64 = 15_000;
/// How long replicas may take to have everything that the leader has, when nobody sends. Unit: ms.
const CATCH_UP_MS: u64 = 20_000;
/// How long it may take until a new node has everything and votes. Unit: ms.
const COMPLETE_MS: u64 = 60_000;
/// How long reading all of it may take. Unit: ms.
const DRAIN_MS: u64 = 600_000;
/// When the logs of nodes that are started now have been read, and mended where they are damaged.
/// Unit: ms.
const SCRUB_MS: u64 = 20_000;
/// How long clients may take to end what they are doing. Unit: ms.
const CLIENTS_END_MS: u64 = 10_000;
/// Time between two rests, in which everything heals: at least, and at most so much more. Unit: ms.
const ROUND_MS: (u64, u64) = (60_000, 240_000);
/// How long a change of the membership may stay half done where nothing fails. Unit: ms.
const JOINT_MS: u64 = 10_000;
/// Size of the parts of a snapshot where there shall be many. Unit: bytes.
const PART_BYTES: usize = 256;
/// Tells the random numbers of rests from those of everything else.
const SALT: u64 = 0x4e57;

/// What is to be simulated.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// How long there are faults. Unit: ms.
    pub faults_ms: u64,
    /// Which classes of faults there may be.
    pub classes: Classes,
}

/// What came out.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Simulated time. Unit: ms.
    pub simulated_ms: u64,
    /// Operations of clients.
    pub operations: usize,
    /// Messages that were acknowledged.
    pub acknowledged: usize,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Processes that ended themselves, by reason.
    pub ends: BTreeMap<String, u64>,
    /// Changes of the membership that were asked for.
    pub membership_changes: u64,
    /// Guards that ended, and were looked at.
    pub guards_ended: u64,
    /// How long it took after the last fault until everything could be done. Unit: ms.
    pub recovered_ms: u64,
    /// Equal for equal runs: everything that went over the network, with its time.
    pub trace: (u64, u64),
    /// What was promised and did not hold.
    pub problems: Vec<String>,
}

/// Runs one seed.
pub fn run(plan: Plan) -> Report {
    let mut trial = Trial::new(plan);
    let alive = trial.suffer(plan.faults_ms) && trial.recover();
    if alive && trial.comparable {
        trial.settle();
        trial.compare();
    } else {
        trial.end_clients();
        trial.judge();
    }
    trial.report()
}

struct Trial {
    cluster: Cluster,
    workload: Arc<Workload>,
    nemesis: Nemesis,
    classes: Classes,
    random: Random,
    settings: NodeSettings,
    damages: bool,
    /// Whether all replicas have the same in the end. Not where some have deleted what is damaged on
    /// others: then only what clients saw is judged.
    comparable: bool,
    report: Report,
}

impl Trial {
    fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let classes = plan.classes.of_life(plan.seed);
        let is_async = classes.has(Class::Async);
        let mut settings = NodeSettings {
            nodes: 3,
            segment_bytes: [16, 64, 512][random.below(3) as usize] << 10,
            flush: FlushDiskType::SyncFlush,
            deletes: random.once_in(2),
            disk_bytes: 192 << 20,
            formed: classes.has(Class::Formed),
            part_bytes: classes.has(Class::Parts).then_some(PART_BYTES),
        };
        if is_async {
            settings.flush = FlushDiskType::AsyncFlush;
        }
        let load = Load {
            producers: 1 + random.below(6),
            pullers: 1 + random.below(2),
            pause_ms: [50, 200, 800][random.below(3) as usize],
            deletes: settings.deletes,
            drops: classes.has(Class::Drops),
        };
        let mean_ms = [1_500, 4_000, 15_000][random.below(3) as usize];
        let mut cluster = Cluster::new(settings, random.number());
        cluster.returns = classes.has(Class::Returns);
        let mut own = Random::new(plan.seed ^ SALT);
        cluster.membership.drops = classes
            .has(Class::DroppedChanges)
            .then(|| Random::new(own.number()));
        let workload = Workload::new(Arc::clone(&cluster.brokers), load);
        workload.history().deletes = settings.deletes;
        let net = Arc::clone(&cluster.clients_net);
        cluster.with_clients(|| workload.start(&net, random.number()));
        let damages = random.once_in(2) && !is_async;
        Self {
            cluster,
            workload,
            nemesis: Nemesis::new(random.number(), mean_ms, damages, classes),
            classes,
            random: own,
            settings,
            damages,
            comparable: !(damages && settings.deletes),
            report: Report::default(),
        }
    }

    /// Lets faults come for so long, with rests; false when something did not come back.
    fn suffer(&mut self, ms: u64) -> bool {
        let end = self.cluster.now_ms + ms;
        let mut rest_ms = self.next_rest_ms();
        while self.cluster.now_ms < end {
            if self.cluster.now_ms >= rest_ms {
                if self.workload.queues() > 0 && !self.rest() {
                    return false;
                }
                rest_ms = self.next_rest_ms();
            }
            self.nemesis.act(&mut self.cluster);
            self.cluster.step();
        }
        true
    }

    fn next_rest_ms(&mut self) -> u64 {
        self.cluster.now_ms + ROUND_MS.0 + self.random.below(ROUND_MS.1 - ROUND_MS.0)
    }

    /// Everything heals and must be well; then something happens that is bearable alone, and all must
    /// be well again.
    fn rest(&mut self) -> bool {
        let played = match self.is_well("faults") {
            Ok(()) => self.play(),
            Err(problem) => Err(problem),
        };
        self.nemesis.rest(&self.cluster);
        let Err(problem) = played else {
            return true;
        };
        if !problem.is_empty() {
            self.fail(problem);
        }
        false
    }

    /// V1 and V4; all nodes have everything (V7), and no change of the membership is half done (V8).
    fn is_well(&mut self, after: &str) -> Result<(), String> {
        if !self.recover() {
            self.fail(format!("V1: that was after {after}"));
            // The problem is told already.
            return Err(String::new());
        }
        scenario::catch_up(&mut self.cluster)
            .map_err(|problem| format!("V7: after {after}: {problem}"))?;
        let flat = |cluster: &mut Cluster| !lock(&cluster.ledger).is_joint();
        if self.cluster.step_until(JOINT_MS, flat) {
            return Ok(());
        }
        Err(format!(
            "V8: after {after} a change of the membership stays half done for {JOINT_MS} ms"
        ))
    }

    fn play(&mut self) -> Result<(), String> {
        let possible = scenario::possible(self.classes, self.settings.deletes, self.damages);
        if possible.is_empty() || self.cluster.nodes.len() != 3 {
            return Ok(());
        }
        let chosen = possible[self.random.below(possible.len() as u64) as usize];
        let mut stage = Stage {
            cluster: &mut self.cluster,
            workload: &self.workload,
            random: &mut self.random,
            damages: self.damages,
        };
        let played = stage.play(chosen);
        if played.map_err(|problem| format!("V9: {chosen:?}: {problem}"))? {
            *self.report.faults.entry(format!("{chosen:?}")).or_default() += 1;
        }
        self.is_well(&format!("{chosen:?}"))
    }

    fn fail(&mut self, problem: String) {
        self.report.problems.push(problem);
    }

    /// Ends all faults and waits until a message can be sent through every replica.
    fn recover(&mut self) -> bool {
        let begin = self.cluster.now_ms;
        self.cluster.heal();
        let nodes = self.cluster.nodes.iter();
        let nodes: Vec<_> = nodes.map(|node| (node.id, node.client_address())).collect();
        for (id, broker) in nodes {
            // Who leaves the group meanwhile need not take anything.
            while self.cluster.nodes.iter().any(|node| node.id == id) {
                let left = (begin + RECOVERY_MS).saturating_sub(self.cluster.now_ms);
                let (net, target) = (Arc::clone(&self.cluster.clients_net), broker.clone());
                let work = Arc::clone(&self.workload);
                let sent = async move { work.probe(net, &target).await };
                match self.cluster.await_client(left, sent) {
                    Some(true) => break,
                    Some(false) if left > 0 => {}
                    _ if self.cluster.leaving.contains(&id) => break,
                    _ => {
                        let ends = &self.cluster.ends;
                        let last = ends.iter().rev().take(3).collect::<Vec<_>>();
                        self.fail(format!(
                            "V1: nothing can be sent through {broker} {RECOVERY_MS} ms after the \
                             last fault; last ends: {last:?}"
                        ));
                        return false;
                    }
                }
            }
        }
        let took_ms = self.cluster.now_ms - begin;
        self.report.recovered_ms = self.report.recovered_ms.max(took_ms);
        let end = self.cluster.now_ms + COMPLETE_MS;
        while !Membership::is_complete(&self.cluster) || !self.cluster.leaving.is_empty() {
            if self.cluster.now_ms > end {
                self.fail(format!(
                    "V4: the group is not complete after {COMPLETE_MS} ms"
                ));
                return false;
            }
            self.cluster.step();
        }
        true
    }

    /// Stops the clients and reads everything from every replica, after a start that finds what is
    /// damaged.
    fn settle(&mut self) {
        for node in &mut self.cluster.nodes {
            node.kill(End::Killed);
        }
        self.cluster.heal();
        self.workload.stop();
        self.cluster.step_until(SCRUB_MS, |_| false);
        self.end_clients();
        self.drain();
        self.rebuild();
        self.judge();
    }

    /// Lets every replica make its consume queue anew from the log, and reads everything once more.
    fn rebuild(&mut self) {
        if self.workload.history().deletes {
            // The log does not begin at its beginning any more.
            return;
        }
        for node in &mut self.cluster.nodes {
            node.kill(End::Killed);
            let queue = Node::consume_queue();
            node.edit_files(|files| files.retain(|(path, _)| path.parent() != Some(&queue)));
        }
        self.cluster.heal();
        self.drain();
    }

    /// Lets the clients end and write down what they have under way: it may be stored, and seen.
    fn end_clients(&mut self) {
        self.workload.stop();
        self.cluster.step_until(CLIENTS_END_MS, |_| false);
    }

    fn judge(&mut self) {
        let problems = oracle::judge(&self.workload.history());
        self.report.problems.extend(problems);
    }

    fn drain(&mut self) {
        let queues = self.workload.queues() as u32;
        let brokers: Vec<String> = self
            .cluster
            .nodes
            .iter()
            .map(|node| node.client_address())
            .collect();
        let net = Arc::clone(&self.cluster.clients_net);
        let ends = self.cluster.await_client(CATCH_UP_MS + 10_000, {
            let brokers = brokers.clone();
            async move { catch_up(net, brokers, queues, (CATCH_UP_MS / 100) as u32).await }
        });
        let Some(Some(ends)) = ends else {
            self.fail(format!("V2: replicas differ after {CATCH_UP_MS} ms"));
            return;
        };
        for broker in brokers {
            let net = Arc::clone(&self.cluster.clients_net);
            let ends = ends.clone();
            let target = broker.clone();
            let drained = self
                .cluster
                .await_client(DRAIN_MS, async move { drain(net, &target, &ends).await });
            match drained {
                Some(Ok(drain)) => self.workload.history().drains.push(drain),
                Some(Err(problem)) => self.fail(format!("V3: {broker}: {problem}")),
                None => self.fail(format!("V3: {broker} is not read to the end")),
            }
        }
    }

    /// Switches everything off and compares the disks.
    fn compare(&mut self) {
        for node in &mut self.cluster.nodes {
            node.kill(End::Killed);
        }
        let problems = replicas::check(&self.cluster.nodes);
        self.report.problems.extend(problems);
    }

    fn report(mut self) -> Report {
        let mut report = self.report;
        let history = self.workload.history();
        report.simulated_ms = self.cluster.now_ms;
        report.operations = history.operations();
        let done = |send: &&Send| matches!(send.outcome, Outcome::Done(_));
        report.acknowledged = history.sends.iter().filter(done).count();
        drop(history);
        for (fault, times) in std::mem::take(&mut self.nemesis.done) {
            report.faults.insert(format!("{fault:?}"), times);
        }
        let dropped = self.workload.dropped.load(Ordering::Relaxed);
        for (what, times) in [
            ("DroppedRequest", dropped),
            ("DroppedMembershipChange", self.cluster.membership.dropped),
        ] {
            if times > 0 {
                report.faults.insert(what.to_owned(), times);
            }
        }
        for (_, _, reason) in &self.cluster.ends {
            *report.ends.entry(reason.clone()).or_default() += 1;
        }
        report.membership_changes = self.cluster.membership.changes;
        report
            .problems
            .append(&mut self.cluster.membership.problems);
        report.problems.append(&mut self.cluster.problems);
        let mut ledger = lock(&self.cluster.ledger);
        report.problems.append(&mut ledger.take_problems());
        report.guards_ended = ledger.guards_ended;
        drop(ledger);
        report.trace = self.cluster.network.trace();
        report
    }
}
