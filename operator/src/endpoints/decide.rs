//! Which replica clients are led to. Pure: what is known of the replicas and what is published go
//! in, at most one write comes out. The rules, in the order in which they are tried:
//!
//! - E1: only a replica that says of itself that it leads and serves is published as leader. A
//!   follower's word is not enough: for an election timeout it names a leader that is dead. Whether
//!   the leader still has a quorum does not matter here: nobody else could serve. The status of the
//!   resource tells of it.
//! - E2: the published term never falls. A leader of a newer term is published at once; one of the
//!   published term only where its address changed, or a stand-in took its place and the leader has
//!   spoken since: another operator may have noticed its death a moment earlier.
//! - E3: when the stream to the published replica breaks, the most caught-up replica that can be
//!   reached stands in: it holds requests and forwards them. Once for each break, so that two
//!   operators of which only one has lost the replica do not push the address to and fro. A pod that
//!   is not in the cache is no break: a watch that lags has not heard of it yet. The API server is
//!   asked first.
//! - E4: never nothing, never two: a slice always has the one address it had, or another.

use std::net::IpAddr;
use std::time::Duration;

use crate::brokers::{NodeView, PROGRESS_INTERVAL, Role};

/// After this long the same break may be acted upon again: the other operator that knew better
/// may be gone as well.
const ACT_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A pod of the group.
#[derive(Debug, Clone, PartialEq)]
pub struct Replica<'a> {
    /// Name of the pod.
    pub pod: &'a str,
    /// Its address.
    pub ip: IpAddr,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// What its broker says.
    pub contact: Contact<'a>,
    /// Whether it has spoken since the slice was written by somebody else.
    pub has_spoken: bool,
}

/// Contact to a broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Contact<'a> {
    /// Not known yet.
    Unknown,
    /// The stream is open.
    Live(&'a NodeView),
    /// The stream is broken; the number tells breaks of the same pod apart.
    Broken(u64),
}

/// Whether the published replica leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Leader,
    /// It holds and forwards.
    StandIn,
}

impl Kind {
    /// As in the annotation.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "Leader",
            Self::StandIn => "StandIn",
        }
    }
}

/// What is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The one address; `None` in a slice that somebody emptied.
    pub ip: Option<IpAddr>,
    /// Newest term of which a leader was published; 0 when there was none.
    pub term: u64,
    /// Node id of that leader; 0 when there was none.
    pub leader: u64,
    /// Whether the address is that leader's.
    pub kind: Kind,
}

/// A break: of which address, and which one. A pod that is gone has no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Break {
    ip: Option<IpAddr>,
    epoch: Option<u64>,
}

/// The break that was acted upon last, and how long ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// The break.
    pub of: Break,
    /// Time since.
    pub age: Duration,
}

/// A write that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The pod whose address is published.
    pub pod: String,
    /// What the slice shall say.
    pub publish: Published,
    /// The break that this answers, if it does.
    pub handles: Option<Break>,
}

/// Whether the published address is one that no replica has, so that [`decide`] has to be told what
/// the API server says of it.
#[must_use]
pub fn is_unknown(replicas: &[Replica<'_>], published: Option<&Published>) -> Option<IpAddr> {
    let ip = published?.ip?;
    let is_known = replicas.iter().any(|replica| replica.ip == ip);
    (!is_known).then_some(ip)
}

/// Decides what to write, if anything. `unknown_is_gone`: no pod of the group has the published
/// address, by the API server's own word; of no account while a replica has it.
#[must_use]
pub fn decide(
    replicas: &[Replica<'_>],
    published: Option<&Published>,
    unknown_is_gone: bool,
    handled: Option<Handled>,
) -> Option<Decision> {
    if let Some((replica, view)) = newest_leader(replicas)
        && published.is_none_or(|published| is_due(published, replica, view))
    {
        return Some(Decision {
            pod: replica.pod.to_owned(),
            publish: Published {
                ip: Some(replica.ip),
                term: view.term,
                leader: view.node_id,
                kind: Kind::Leader,
            },
            handles: None,
        });
    }
    let lost = match published {
        None => None,
        Some(_) if !unknown_is_gone && is_unknown(replicas, published).is_some() => return None,
        Some(published) => Some(find_break(replicas, published)?),
    };
    if let (Some(lost), Some(handled)) = (lost, handled)
        && handled.of == lost
        && handled.age < ACT_AGAIN_AFTER
    {
        return None;
    }
    let replica = stand_in(replicas)?;
    Some(Decision {
        pod: replica.pod.to_owned(),
        publish: Published {
            ip: Some(replica.ip),
            term: published.map_or(0, |published| published.term),
            leader: published.map_or(0, |published| published.leader),
            kind: Kind::StandIn,
        },
        handles: lost,
    })
}

/// When the next decision may differ although nothing new is heard in between: a stand-in may be
/// waiting for the leader's next word, a break may be acted upon again.
#[must_use]
pub fn again_in(published: Option<&Published>, handled: Option<Handled>) -> Option<Duration> {
    let left = handled.and_then(|handled| ACT_AGAIN_AFTER.checked_sub(handled.age));
    let left = left.filter(|left| !left.is_zero());
    let stands_in = published.is_some_and(|published| published.kind == Kind::StandIn);
    let word = stands_in.then_some(PROGRESS_INTERVAL / 2);
    left.into_iter().chain(word).min()
}

/// E1.
fn newest_leader<'a, 'b>(replicas: &'b [Replica<'a>]) -> Option<(&'b Replica<'a>, &'a NodeView)> {
    let leading = replicas.iter().filter_map(|replica| match replica.contact {
        Contact::Live(view) if view.role == Role::Leader => Some((replica, view)),
        _ => None,
    });
    leading.max_by_key(|(_, view)| view.term)
}

/// E2.
fn is_due(published: &Published, leader: &Replica<'_>, view: &NodeView) -> bool {
    if view.term != published.term {
        return view.term > published.term;
    }
    // One term has one leader; a slice that says otherwise was not written by an operator.
    let is_moved = published.ip != Some(leader.ip) || published.kind != Kind::Leader;
    view.node_id == published.leader && is_moved && leader.has_spoken
}

/// The break of the published replica; `None` while it is, or may be, alive.
fn find_break(replicas: &[Replica<'_>], published: &Published) -> Option<Break> {
    let replica = replicas
        .iter()
        .find(|replica| Some(replica.ip) == published.ip);
    let epoch = match replica.map(|replica| &replica.contact) {
        Some(Contact::Live(_) | Contact::Unknown) => return None,
        Some(Contact::Broken(epoch)) => Some(*epoch),
        None => None,
    };
    Some(Break {
        ip: published.ip,
        epoch,
    })
}

/// E3: most caught-up means newest term, then longest log. A pod that is about to go is the last
/// resort; a node that belongs to no group yet is none, because it has nobody to forward to.
fn stand_in<'a, 'b>(replicas: &'b [Replica<'a>]) -> Option<&'b Replica<'a>> {
    let able = replicas.iter().filter_map(|replica| match replica.contact {
        Contact::Live(view) if view.initialized => Some((replica, view)),
        _ => None,
    });
    able.max_by_key(|(replica, view)| (!replica.terminating, view.term, view.last_index))
        .map(|(replica, _)| replica)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
