//! Consumer offsets on their way into the log, gathered for a moment.
//!
//! Clients commit each queue every five seconds and with many pulls, mostly what is committed
//! already; each commit as an entry of its own would fill the log. What the state already says, or
//! what is on its way, is dropped at once. The rest waits here up to [`GATHER`] and goes in as few
//! commands. An offset counts only once it is applied: what is asked for is always answered from
//! the state, so an answer never goes back after a failover.
//!
//! What waits belongs to the term in which it came. Between two terms of this node another one may
//! have led, and its clients may have committed later offsets there: nothing of an earlier term is
//! proposed in a later one, neither by this file nor by the proposer, which is told the term.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream};
use raftmq_state::{Command, CommitMode, EncodedCommand, OffsetCommit};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};

use crate::broker::Broker;

/// How long commits gather. Far below the client's five seconds between commits.
const GATHER: Duration = Duration::from_millis(100);
/// Queues whose commits may wait; beyond it commits are dropped (clients repeat them). With
/// [`NAMES_BYTES_MAX`] about 16 MiB, and as much again while they are on their way.
const QUEUES_MAX: usize = 200_000;
/// Bytes of the groups' and topics' names under which commits may wait, see [`QUEUES_MAX`].
const NAMES_BYTES_MAX: usize = 8 << 20;
/// Commits in one command: applying it holds the state lock for about a millisecond, and its entry
/// stays far below 1 MiB.
const COMMITS_MAX: usize = 1024;
/// Commands on their way at a time, as many as the proposer has entries in flight.
const COMMANDS_MAX: usize = 4;
/// Longest wait for what came in before: a round that is under way and the next one, each of which
/// the proposer ends after 2.9 s.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(6);

/// A commit as its request names it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commit<'a> {
    pub group: &'a str,
    pub topic: &'a str,
    pub queue_id: u32,
    pub offset: u64,
    pub mode: CommitMode,
}

/// An offset, and what it does to the one that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    offset: u64,
    mode: CommitMode,
}

impl Target {
    /// What is left to do when `self` and then `next` are committed.
    fn then(self, next: Self) -> Self {
        match next.mode {
            CommitMode::Set => next,
            CommitMode::Max => Self {
                offset: self.offset.max(next.offset),
                mode: self.mode,
            },
        }
    }

    /// Whether committing `self` changes nothing once `before` is applied.
    fn is_covered_by(self, before: Self) -> bool {
        match (self.mode, before.mode) {
            (CommitMode::Max, _) => self.offset <= before.offset,
            (CommitMode::Set, CommitMode::Set) => self.offset == before.offset,
            // The offset may be beyond it then.
            (CommitMode::Set, CommitMode::Max) => false,
        }
    }
}

/// Commits by group, topic and queue id: names are looked up as they are borrowed.
#[derive(Debug, Default)]
struct Table {
    groups: BTreeMap<String, BTreeMap<String, BTreeMap<u32, Target>>>,
    queues: usize,
    /// Bytes of the names.
    names: usize,
}

impl Table {
    fn get(&self, commit: &Commit<'_>) -> Option<Target> {
        let topics = self.groups.get(commit.group)?;
        topics.get(commit.topic)?.get(&commit.queue_id).copied()
    }

    fn get_mut(&mut self, commit: &Commit<'_>) -> Option<&mut Target> {
        let topics = self.groups.get_mut(commit.group)?;
        topics.get_mut(commit.topic)?.get_mut(&commit.queue_id)
    }

    /// Adds a commit of a queue that has none, if there is room.
    fn insert(&mut self, commit: &Commit<'_>, target: Target) {
        if self.queues >= QUEUES_MAX || self.names >= NAMES_BYTES_MAX {
            return;
        }
        if !self.groups.contains_key(commit.group) {
            self.names += commit.group.len();
            self.groups.insert(commit.group.to_owned(), BTreeMap::new());
        }
        let Some(topics) = self.groups.get_mut(commit.group) else {
            return;
        };
        if !topics.contains_key(commit.topic) {
            self.names += commit.topic.len();
            topics.insert(commit.topic.to_owned(), BTreeMap::new());
        }
        let Some(queues) = topics.get_mut(commit.topic) else {
            return;
        };
        queues.insert(commit.queue_id, target);
        self.queues += 1;
    }

    /// The commits as commands, made one by one.
    fn commands(&self) -> impl Iterator<Item = EncodedCommand> {
        let mut commits = self.groups.iter().flat_map(|(group, topics)| {
            topics.iter().flat_map(move |(topic, queues)| {
                queues.iter().map(move |(queue_id, target)| OffsetCommit {
                    group: group.clone(),
                    topic: topic.clone(),
                    queue_id: *queue_id,
                    offset: target.offset,
                    mode: target.mode,
                })
            })
        });
        std::iter::from_fn(move || {
            let commits: Vec<OffsetCommit> = commits.by_ref().take(COMMITS_MAX).collect();
            (!commits.is_empty()).then(|| Command::CommitOffsets { commits }.encode())
        })
    }
}

#[derive(Debug, Default)]
struct Gathered {
    /// Term in which all of it came in.
    term: u64,
    waiting: Table,
    /// What the round that is under way proposes.
    sent: Arc<Table>,
    /// Whether everything proposed before has an outcome. Otherwise some of it may yet be applied,
    /// and what the state says now is no reason to drop a commit.
    is_certain: bool,
    /// Rounds begun.
    rounds: u64,
}

impl Gathered {
    /// Goes over to `term`; false when that is over.
    fn enter(&mut self, term: u64) -> bool {
        if term > self.term {
            // A leader serves when everything of earlier terms has its outcome.
            *self = Self {
                term,
                is_certain: true,
                rounds: self.rounds,
                ..Self::default()
            };
        }
        term == self.term
    }
}

/// How the commands of a round ended.
#[derive(Clone, Copy, Debug)]
enum End {
    /// There were none.
    Nothing,
    Applied,
    /// Some of them may be applied later, or never.
    Unknown,
}

/// The newest round that has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    number: u64,
    /// Whether the disk had room for it; without, what waits goes on waiting.
    had_room: bool,
}

/// Owns its lock; taken for a look-up, an insert or a swap, and before the state's when a commit
/// is compared with what is applied.
#[derive(Debug, Default)]
pub struct OffsetCommits {
    gathered: Mutex<Gathered>,
    arrived: Notify,
    /// Somebody waits: gather no longer.
    urgent: Notify,
    ended: watch::Sender<Round>,
}

impl OffsetCommits {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a commit that nobody waits for, unless it changes nothing.
    pub(crate) fn add(&self, broker: &Broker, commit: &Commit<'_>) {
        let Some(term) = broker.serving_term() else {
            return;
        };
        let applied = || {
            let state = broker.machine.state();
            state.consumer_offset(commit.group, commit.topic, commit.queue_id)
        };
        if self.take_in(term, applied, commit) {
            self.arrived.notify_one();
        }
    }

    /// Whether there is something to write.
    fn take_in(
        &self,
        term: u64,
        applied: impl FnOnce() -> Option<u64>,
        commit: &Commit<'_>,
    ) -> bool {
        let target = Target {
            offset: commit.offset,
            mode: commit.mode,
        };
        let mut gathered = self.gathered();
        if !gathered.enter(term) {
            return false;
        }
        if let Some(waiting) = gathered.waiting.get_mut(commit) {
            *waiting = waiting.then(target);
            return true;
        }
        let before = gathered.sent.get(commit).or_else(|| {
            // Under the lock: what was sent and is not any more is applied.
            let offset = applied().filter(|_| gathered.is_certain)?;
            let mode = CommitMode::Set;
            Some(Target { offset, mode })
        });
        if before.is_some_and(|before| target.is_covered_by(before)) {
            return false;
        }
        gathered.waiting.insert(commit, target);
        true
    }

    /// Forgets what waits unless it is of `term`, the one in which this node serves now.
    pub(crate) fn keep_only(&self, term: Option<u64>) {
        let mut gathered = self.gathered();
        if term != Some(gathered.term) {
            gathered.waiting = Table::default();
        }
    }

    /// Commits what gathers for as long as the process runs.
    pub(crate) async fn run(broker: Arc<Broker>) {
        let this = &broker.offset_commits;
        loop {
            this.arrived.notified().await;
            tokio::select! {
                biased;
                () = this.urgent.notified() => {}
                () = sleep(GATHER) => {}
            }
            this.write(&broker).await;
        }
    }

    /// One round: proposes what waits and waits for the outcome.
    async fn write(&self, broker: &Broker) {
        let had_room = broker.takes_note();
        let term = broker.serving_term();
        self.keep_only(term);
        let (number, sent) = self.begin_round(had_room);
        let mut end = End::Nothing;
        if let Some(term) = term {
            let outcomes = sent
                .commands()
                .map(|command| broker.proposer().propose_in_term(command, term));
            let mut outcomes = stream::iter(outcomes).buffered(COMMANDS_MAX);
            // One that failed waited for a quorum or found that the term is over: then clients
            // repeat the others too.
            while let Some(outcome) = outcomes.next().await {
                end = End::Applied;
                if let Err(error) = outcome {
                    tracing::debug!(%error, "commit consumer offsets; clients repeat them");
                    end = End::Unknown;
                    break;
                }
            }
        }
        self.end_round(number, had_room, end);
    }

    /// Moves what waits to what is on its way.
    fn begin_round(&self, had_room: bool) -> (u64, Arc<Table>) {
        let mut gathered = self.gathered();
        gathered.rounds += 1;
        if had_room {
            gathered.sent = Arc::new(std::mem::take(&mut gathered.waiting));
        }
        (gathered.rounds, Arc::clone(&gathered.sent))
    }

    fn end_round(&self, number: u64, had_room: bool, end: End) {
        let mut gathered = self.gathered();
        match end {
            End::Nothing => {}
            // Commands of a term are applied in the order in which they were proposed.
            End::Applied => gathered.is_certain = true,
            End::Unknown => gathered.is_certain = false,
        }
        gathered.sent = Arc::default();
        drop(gathered);
        self.ended.send_replace(Round { number, had_room });
    }

    /// The round after which everything that came in before has its outcome; `None` when all of it
    /// has.
    fn settled_after(&self) -> Option<u64> {
        let gathered = self.gathered();
        let is_under_way = self.ended.borrow().number < gathered.rounds;
        if gathered.waiting.queues > 0 {
            Some(gathered.rounds + 1)
        } else {
            is_under_way.then_some(gathered.rounds)
        }
    }

    /// Makes sure that what came in before is applied: a consumer that takes over a queue asks
    /// for the offset right after the one before it has committed.
    pub(crate) async fn settle(&self, broker: &Broker) {
        self.flush(broker).await;
    }

    /// Commits what waits now, after what is on its way. False when the disk is too full even for
    /// that: then it goes on waiting, until the next commit of any client.
    pub(crate) async fn flush(&self, broker: &Broker) -> bool {
        if !broker.takes_note() {
            return false;
        }
        let Some(round) = self.settled_after() else {
            return true;
        };
        let mut ended = self.ended.subscribe();
        self.urgent.notify_one();
        self.arrived.notify_one();
        let wait = ended.wait_for(|ended| ended.number >= round);
        match timeout(SETTLE_TIMEOUT, wait).await {
            Ok(Ok(ended)) => ended.had_room,
            // As with a commit whose outcome is unknown.
            Ok(Err(_)) | Err(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: u64 = 7;

    fn commit(queue_id: u32, offset: u64, mode: CommitMode) -> Commit<'static> {
        Commit {
            group: "g",
            topic: "t",
            queue_id,
            offset,
            mode,
        }
    }

    fn set(offset: u64) -> Commit<'static> {
        commit(0, offset, CommitMode::Set)
    }

    fn max(offset: u64) -> Commit<'static> {
        commit(0, offset, CommitMode::Max)
    }

    /// Hands commits in over a state that has `applied`.
    fn gather(commits: &OffsetCommits, applied: Option<u64>, new: &[Commit<'_>]) {
        for commit in new {
            commits.take_in(TERM, || applied, commit);
        }
    }

    /// What the next round proposes.
    fn round(commits: &OffsetCommits) -> Vec<(u32, u64, CommitMode)> {
        let (_, sent) = commits.begin_round(true);
        let commands: Vec<Command> = sent.commands().map(|encoded| decode(&encoded)).collect();
        let of = |command| match command {
            Command::CommitOffsets { commits } => commits,
            other => unreachable!("{other:?}"),
        };
        let commits = commands.into_iter().flat_map(of);
        commits
            .map(|commit| (commit.queue_id, commit.offset, commit.mode))
            .collect()
    }

    fn decode(encoded: &EncodedCommand) -> Command {
        let mut payload = raftmq_state::PayloadBuilder::new(0);
        payload.push(encoded);
        let (_, mut commands) = raftmq_state::decode_payload(&payload.finish()).unwrap();
        commands.remove(0).1
    }

    #[test]
    fn a_commit_that_rides_on_a_pull_never_takes_a_waiting_one_back() {
        let commits = OffsetCommits::default();
        gather(&commits, None, &[set(9), max(5)]);
        assert_eq!(round(&commits), [(0, 9, CommitMode::Set)]);
        commits.end_round(1, true, End::Applied);
        gather(&commits, None, &[set(9), max(5), set(5)]);
        assert_eq!(round(&commits), [(0, 5, CommitMode::Set)]);
        commits.end_round(2, true, End::Applied);
        assert_eq!(round(&commits), []);
    }

    #[test]
    fn what_is_applied_already_is_not_logged_again() {
        let commits = OffsetCommits::default();
        gather(&commits, Some(9), &[set(9), max(9), max(3)]);
        assert_eq!(round(&commits), []);
        // Back is a change, and so is the way back to where it was.
        gather(&commits, Some(9), &[set(5), set(9)]);
        assert_eq!(round(&commits), [(0, 9, CommitMode::Set)]);
    }

    #[test]
    fn what_is_on_its_way_counts_as_applied_and_hides_what_is() {
        let commits = OffsetCommits::default();
        gather(&commits, Some(5), &[set(9)]);
        assert_eq!(round(&commits), [(0, 9, CommitMode::Set)]);
        gather(&commits, Some(5), &[set(9), max(7)]);
        commits.begin_round(true);
        gather(&commits, Some(5), &[set(9)]);
        let commits = OffsetCommits::default();
        gather(&commits, Some(5), &[set(9)]);
        round(&commits);
        // The state still says 5, but will say 9.
        gather(&commits, Some(5), &[set(5)]);
        commits.end_round(1, true, End::Applied);
        assert_eq!(round(&commits), [(0, 5, CommitMode::Set)]);
    }

    #[test]
    fn while_an_outcome_is_unknown_nothing_is_dropped() {
        let commits = OffsetCommits::default();
        gather(&commits, Some(5), &[set(9)]);
        round(&commits);
        commits.end_round(1, true, End::Unknown);
        // 9 may be applied yet.
        gather(&commits, Some(5), &[set(5)]);
        assert_eq!(round(&commits), [(0, 5, CommitMode::Set)]);
        commits.end_round(2, true, End::Applied);
        gather(&commits, Some(5), &[set(5)]);
        assert_eq!(round(&commits), []);
    }

    #[test]
    fn nothing_of_an_earlier_term_is_written_in_a_later_one() {
        let commits = OffsetCommits::default();
        gather(&commits, None, &[set(5)]);
        // Another node led in between, and nobody here has noticed.
        commits.take_in(TERM + 2, || Some(9), &commit(1, 1, CommitMode::Set));
        assert_eq!(round(&commits), [(1, 1, CommitMode::Set)]);
        // A request that began in the earlier term.
        gather(&commits, None, &[set(6)]);
        commits.end_round(1, true, End::Applied);
        assert_eq!(round(&commits), []);
        gather(&commits, None, &[set(6)]);
        commits.keep_only(Some(TERM + 3));
        assert_eq!(round(&commits), []);
    }

    #[test]
    fn what_waits_is_bounded_in_queues_and_in_names() {
        let commits = OffsetCommits::default();
        for queue_id in 0..=u32::try_from(QUEUES_MAX).unwrap() {
            gather(&commits, None, &[commit(queue_id, 1, CommitMode::Set)]);
        }
        assert_eq!(commits.gathered().waiting.queues, QUEUES_MAX);
        commits.keep_only(None);
        let name = "n".repeat(1 << 10);
        for number in 0..10_000 {
            let group = format!("{name}{number}");
            let group = group.as_str();
            gather(&commits, None, &[Commit { group, ..set(1) }]);
        }
        let names = commits.gathered().waiting.names;
        assert!(
            names < NAMES_BYTES_MAX + (2 << 10),
            "{names} bytes of names"
        );
    }

    #[test]
    fn a_round_settles_what_came_in_before_it() {
        let commits = OffsetCommits::default();
        assert_eq!(commits.settled_after(), None);
        gather(&commits, None, &[set(1)]);
        assert_eq!(commits.settled_after(), Some(1));
        round(&commits);
        assert_eq!(commits.settled_after(), Some(1), "it is under way");
        gather(&commits, None, &[set(2)]);
        assert_eq!(commits.settled_after(), Some(2), "it came too late");
        commits.end_round(1, true, End::Applied);
        assert_eq!(commits.settled_after(), Some(2));
        round(&commits);
        commits.end_round(2, true, End::Applied);
        assert_eq!(commits.settled_after(), None);
    }
}
