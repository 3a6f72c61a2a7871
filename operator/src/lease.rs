//! The lock that lets one operator reconcile at a time: a `Lease`, taken and renewed by compare
//! and swap. Whether it has run out is judged by the time that went by *here* since it was seen to
//! change, never by the clocks that wrote it.
//!
//! It is a courtesy, not a proof: an operator that was frozen may believe in its lease for a moment
//! too long. What must not happen twice is guarded where it is written.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// After this long without a change another operator may take the lease.
const DURATION: Duration = Duration::from_secs(15);
/// After this long without a successful renewal the holder stops reconciling.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks at the lease, or two renewals of it.
const RETRY: Duration = Duration::from_secs(2);
/// Longest wait for the API server in one look. An overloaded one needs more than a moment, and a
/// request that was given up costs it another.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const _: () = assert!(RENEW_DEADLINE.as_secs() < DURATION.as_secs());
const _: () = assert!(RETRY.as_secs() + ANSWER_TIMEOUT.as_secs() < RENEW_DEADLINE.as_secs());

/// A lease as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    holder: String,
    resource_version: String,
    transitions: i32,
    /// How long its holder asks for; a holder that leaves asks for a second.
    duration: Duration,
}

/// What to do about a lease that was just read.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// There is none: make it.
    Create,
    /// It is ours: renew it.
    Renew(Seen),
    /// It has run out: take it.
    Take(Seen),
    /// Another holds it.
    Wait,
}

/// What is remembered between two looks.
#[derive(Debug, Default)]
struct Memory {
    /// The newest version, and when it was first seen.
    last: Option<(String, Instant)>,
}

impl Memory {
    /// Decides, at `now`.
    fn decide(&mut self, seen: Option<Seen>, me: &str, now: Instant) -> Move {
        let Some(seen) = seen else {
            self.last = None;
            return Move::Create;
        };
        let since = match &self.last {
            Some((version, since)) if *version == seen.resource_version => *since,
            _ => {
                self.last = Some((seen.resource_version.clone(), now));
                now
            }
        };
        if seen.holder == me {
            return Move::Renew(seen);
        }
        if seen.holder.is_empty() || now.duration_since(since) >= seen.duration {
            return Move::Take(seen);
        }
        Move::Wait
    }
}

/// Keeps trying to hold a lease.
pub struct LeaseLock {
    api: Api<Lease>,
    name: String,
    namespace: String,
    /// Name of this operator; unique, such as that of its pod.
    me: String,
    held: watch::Sender<bool>,
    /// When an attempt was made last, for the liveness probe.
    tried: watch::Sender<Instant>,
}

impl std::fmt::Debug for LeaseLock {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "LeaseLock {}/{} of {}",
            self.namespace, self.name, self.me
        )
    }
}

impl LeaseLock {
    /// A lock on lease `name`, held in the name of `me`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, name: &str, me: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            me: me.to_owned(),
            held: watch::channel(false).0,
            tried: watch::channel(Instant::now()).0,
        }
    }

    /// Whether the lease is held.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<bool> {
        self.held.subscribe()
    }

    /// When an attempt was made last.
    #[must_use]
    pub fn tried(&self) -> watch::Receiver<Instant> {
        self.tried.subscribe()
    }

    /// Tries to hold the lease until `stop` turns true.
    pub async fn run(&self, mut stop: watch::Receiver<bool>) {
        let mut memory = Memory::default();
        let mut renewed = Instant::now();
        loop {
            let asked = Instant::now();
            self.tried.send_replace(asked);
            let attempt = timeout(ANSWER_TIMEOUT, self.attempt(&mut memory));
            match attempt.await {
                Ok(Ok(true)) => {
                    // From before the request: others count from when it was written.
                    renewed = asked;
                    self.set_held(true);
                }
                Ok(Ok(false)) => self.set_held(false),
                Ok(Err(error)) => tracing::warn!(%error, lease = self.name, "lease"),
                Err(_) => tracing::warn!(lease = self.name, "lease: no answer"),
            }
            if renewed.elapsed() >= RENEW_DEADLINE {
                self.set_held(false);
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = sleep(RETRY) => {}
            }
        }
    }

    /// Lets another operator take the lease at once. Called when nothing reconciles any more.
    pub async fn release(&self) {
        if !*self.held.borrow() {
            return;
        }
        self.set_held(false);
        let freed = async {
            let seen = self.read().await?;
            let Some(seen) = seen.filter(|seen| seen.holder == self.me) else {
                return Ok(());
            };
            self.replace(&seen, "", Duration::from_secs(1))
                .await
                .map(drop)
        };
        match timeout(ANSWER_TIMEOUT, freed).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "lease released"),
            Ok(Err(error)) => tracing::warn!(%error, "release lease: it runs out by itself"),
            Err(_) => tracing::warn!("release lease: no answer; it runs out by itself"),
        }
    }

    fn set_held(&self, held: bool) {
        let changed = self.held.send_if_modified(|before| {
            let changed = *before != held;
            *before = held;
            changed
        });
        if changed {
            tracing::info!(lease = self.name, held, "lease");
        }
    }

    /// One look, and what follows from it. Whether the lease is held afterwards.
    async fn attempt(&self, memory: &mut Memory) -> Result<bool, kube::Error> {
        let seen = self.read().await?;
        let result = match memory.decide(seen, &self.me, Instant::now()) {
            Move::Create => self.create().await,
            Move::Renew(seen) | Move::Take(seen) => self.replace(&seen, &self.me, DURATION).await,
            Move::Wait => return Ok(false),
        };
        match result {
            Ok(()) => Ok(true),
            // Somebody was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn read(&self) -> Result<Option<Seen>, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        Ok(lease.map(|lease| {
            let spec = lease.spec.unwrap_or_default();
            let seconds = spec
                .lease_duration_seconds
                .and_then(|seconds| seconds.try_into().ok());
            Seen {
                holder: spec.holder_identity.unwrap_or_default(),
                resource_version: lease.metadata.resource_version.unwrap_or_default(),
                transitions: spec.lease_transitions.unwrap_or_default(),
                duration: seconds.map_or(DURATION, Duration::from_secs),
            }
        }))
    }

    async fn create(&self) -> Result<(), kube::Error> {
        let lease = self.body(None, &self.me, 0, DURATION);
        self.api
            .create(&PostParams::default(), &lease)
            .await
            .map(drop)
    }

    async fn replace(
        &self,
        seen: &Seen,
        holder: &str,
        wanted: Duration,
    ) -> Result<(), kube::Error> {
        let is_new = seen.holder != holder;
        let transitions = seen.transitions.saturating_add(i32::from(is_new));
        let version = Some(seen.resource_version.clone());
        let lease = self.body(version, holder, transitions, wanted);
        self.api
            .replace(&self.name, &PostParams::default(), &lease)
            .await
            .map(drop)
    }

    fn body(
        &self,
        resource_version: Option<String>,
        holder: &str,
        transitions: i32,
        wanted: Duration,
    ) -> Lease {
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                resource_version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: i32::try_from(wanted.as_secs()).ok(),
                lease_transitions: Some(transitions),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, version: &str) -> Option<Seen> {
        Some(Seen {
            holder: holder.to_owned(),
            resource_version: version.to_owned(),
            transitions: 0,
            duration: DURATION,
        })
    }

    #[test]
    fn a_lease_is_taken_only_after_it_did_not_change_for_its_whole_duration_here() {
        let mut memory = Memory::default();
        let start = Instant::now();
        assert_eq!(memory.decide(seen("a", "1"), "b", start), Move::Wait);
        let almost = start + DURATION - Duration::from_millis(1);
        assert_eq!(memory.decide(seen("a", "1"), "b", almost), Move::Wait);
        // A renewal starts the time anew.
        assert_eq!(memory.decide(seen("a", "2"), "b", almost), Move::Wait);
        assert_eq!(
            memory.decide(seen("a", "2"), "b", start + DURATION),
            Move::Wait
        );
        let over = almost + DURATION;
        assert_eq!(
            memory.decide(seen("a", "2"), "b", over),
            Move::Take(seen("a", "2").unwrap())
        );
    }

    #[test]
    fn an_own_lease_is_renewed_a_free_one_taken_and_a_missing_one_made() {
        let mut memory = Memory::default();
        let now = Instant::now();
        assert_eq!(memory.decide(None, "a", now), Move::Create);
        let own = seen("a", "1");
        assert_eq!(
            memory.decide(own.clone(), "a", now),
            Move::Renew(own.unwrap())
        );
        let free = seen("", "2");
        assert_eq!(
            memory.decide(free.clone(), "a", now),
            Move::Take(free.unwrap())
        );
    }
}
