//! Which data folder each member must have: the incarnations that the membership names, compared
//! with those that peers tell. A node that lost its disk forgot its vote and its log; under its old
//! id it must neither vote nor receive the log, so voters, candidates and leaders refuse it. Once it has
//! left the group it may be taken in again with its new disk. It may then lead a member that is behind
//! and still knows the old one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::IntCounter;
use tokio::sync::watch;

use super::types::{PeerNode, StoredMembership};

/// Refused disks that are remembered, so that each is logged once. Beyond it they are only counted.
const LOGGED_MAX: usize = 64;
/// Nodes that are remembered because they have introduced themselves: more than a group has.
const MET_MAX: usize = 64;

/// The membership this node knows, as far as connections need it. Invariant raft:I1: votes pass only
/// between nodes whose incarnations are those that the memberships of both name, and a leader sends to
/// nobody else than its own membership names. A follower takes entries from whoever leads.
#[derive(Debug)]
pub(crate) struct Members {
    current: watch::Sender<Arc<StoredMembership>>,
    /// Addresses of nodes that have introduced themselves.
    met: Mutex<BTreeMap<u64, String>>,
    /// Id and incarnation of refused nodes that were logged.
    logged: Mutex<BTreeSet<(u64, String)>>,
    /// Why a member refuses this node, while it does.
    refused_by: watch::Sender<Option<String>>,
    refusals: IntCounter,
}

impl Members {
    /// Members of a membership that is not known yet; refusals are counted in `refusals`.
    pub(crate) fn new(refusals: IntCounter) -> Self {
        Self {
            current: watch::Sender::new(Arc::new(StoredMembership::default())),
            met: Mutex::default(),
            logged: Mutex::default(),
            refused_by: watch::Sender::new(None),
            refusals,
        }
    }

    /// Takes the membership in force: the newest in the log, committed or not, as Raft does.
    pub(crate) fn set(&self, membership: &Arc<StoredMembership>) {
        self.current.send_if_modified(|current| {
            let changed = !Arc::ptr_eq(current, membership) && **current != **membership;
            if changed {
                *current = Arc::clone(membership);
            }
            changed
        });
    }

    /// The incarnation that the membership names for node `id`; empty = none.
    pub(crate) fn named(&self, id: u64) -> String {
        let current = self.current.borrow();
        let node: Option<&PeerNode> = current.get_node(&id);
        node.map(|node| node.incarnation.clone())
            .unwrap_or_default()
    }

    /// Ids and addresses of the members.
    pub(crate) fn addresses(&self) -> Vec<(u64, String)> {
        let current = self.current.borrow();
        let nodes = current.nodes();
        nodes
            .map(|(id, node)| (*id, node.address.clone()))
            .collect()
    }

    /// Takes note of a node of this group that has said where it listens.
    pub(crate) fn meet(&self, id: u64, address: &str) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        if !address.is_empty() && (met.len() < MET_MAX || met.contains_key(&id)) {
            met.insert(id, address.to_owned());
        }
    }

    /// Members, and who else has introduced itself: who joined after what this node knows of the
    /// membership.
    pub(crate) fn known(&self) -> BTreeMap<u64, String> {
        let met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = met.clone();
        drop(met);
        known.extend(self.addresses());
        known
    }

    /// Whether a node that says it is `id` with the folder `incarnation` is the member.
    ///
    /// # Errors
    /// The reason why it is not.
    pub(crate) fn check(&self, id: u64, incarnation: &str) -> Result<(), String> {
        compare(id, &self.named(id), incarnation)
    }

    /// Counts a refused node and logs it the first time.
    pub(crate) fn refuse(&self, id: u64, incarnation: &str, reason: &str) {
        self.refusals.inc();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() < LOGGED_MAX && logged.insert((id, incarnation.to_owned())) {
            tracing::warn!(node = id, "refuse connections: {reason}");
        }
    }

    /// Resolves when the membership says that `id` is not the member any more, with the reason.
    pub(crate) async fn until_refused(&self, id: u64, incarnation: &str) -> String {
        let mut current = self.current.subscribe();
        loop {
            current.borrow_and_update();
            if let Err(reason) = self.check(id, incarnation) {
                return reason;
            }
            // The sender lives as long as `self`.
            if current.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Notes that a member takes this node for one that returned with another disk.
    pub(crate) fn refused(&self, reason: &str) {
        self.refused_by.send_if_modified(|current| {
            let news = current.as_deref() != Some(reason);
            if news {
                tracing::warn!("the group refuses this node: {reason}");
                *current = Some(reason.to_owned());
            }
            news
        });
    }

    /// A member has taken this node: an earlier refusal came from an older membership.
    pub(crate) fn taken(&self) {
        self.refused_by
            .send_if_modified(|current| current.take().is_some());
    }

    /// Why a member refuses this node, while it does.
    pub(crate) fn refused_by(&self) -> watch::Receiver<Option<String>> {
        self.refused_by.subscribe()
    }
}

/// Compares the incarnation that a membership names for node `id` with the one the node tells.
///
/// # Errors
/// The reason why they do not fit.
pub(crate) fn compare(id: u64, named: &str, told: &str) -> Result<(), String> {
    if named.is_empty() || named == told {
        return Ok(());
    }
    let told = if told.is_empty() { "unknown" } else { told };
    Err(format!(
        "node {id} returned with another disk: its incarnation is {told}, the membership names \
         {named}; remove node {id} from the group and add the broker again with an empty data folder"
    ))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::raft::types::{LogId, Membership};

    fn members() -> Members {
        Members::new(IntCounter::new("refusals", "Refusals.").unwrap())
    }

    #[test]
    fn who_introduces_itself_is_known_unless_the_membership_knows_better() {
        let members = members();
        members.meet(4, "d:4");
        members.meet(2, "old:2");
        members.meet(5, "");
        members.set(&membership(1, "disk-2"));
        let known: Vec<_> = members.known().into_iter().collect();
        assert_eq!(known, [(2, "b:2".to_owned()), (4, "d:4".to_owned())]);
        for id in 10..1_000 {
            members.meet(id, "x:1");
        }
        assert!(members.known().len() <= MET_MAX + 1);
    }

    fn membership(index: u64, incarnation: &str) -> Arc<StoredMembership> {
        let node = PeerNode {
            address: "b:2".into(),
            incarnation: incarnation.into(),
        };
        let nodes = BTreeMap::from([(2, node)]);
        let membership = Membership::new(vec![BTreeSet::from([2])], nodes).unwrap();
        Arc::new(StoredMembership::new(
            Some(LogId::new_term_index(1, index)),
            membership,
        ))
    }

    #[test]
    fn only_a_named_incarnation_is_compared() {
        let members = members();
        assert_eq!(members.check(2, "x"), Ok(()), "no membership is known");
        members.set(&membership(1, ""));
        assert_eq!(members.check(2, "x"), Ok(()), "none is named");
        members.set(&membership(2, "x"));
        assert_eq!(members.check(2, "x"), Ok(()));
        assert_eq!(members.check(3, "y"), Ok(()), "node 3 is no member");
        for other in ["y", ""] {
            let reason = members.check(2, other).unwrap_err();
            assert!(
                reason.starts_with("node 2 returned with another disk:"),
                "{reason}"
            );
        }
    }

    #[test]
    fn a_connection_is_refused_as_soon_as_the_membership_names_another_disk() {
        let members = members();
        let mut refused = Box::pin(members.until_refused(2, "y"));
        assert!(refused.as_mut().now_or_never().is_none());
        members.set(&membership(1, "y"));
        assert!(refused.as_mut().now_or_never().is_none());
        members.set(&membership(2, "x"));
        assert!(refused.now_or_never().unwrap().contains("names x"));
    }

    #[test]
    fn every_refusal_is_counted_and_each_disk_is_logged_once() {
        let members = members();
        for _ in 0..3 {
            members.refuse(2, "y", "reason");
        }
        members.refuse(2, "z", "reason");
        assert_eq!(members.refusals.get(), 4);
        assert_eq!(members.logged.lock().unwrap().len(), 2);
    }
}
