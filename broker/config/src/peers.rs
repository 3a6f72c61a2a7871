//! The Raft part of a broker's configuration: who the members of the group are.

use std::net::{IpAddr, Ipv6Addr};

use super::{BrokerConfig, Report};

/// A member of the group as `dLegerPeers` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftPeer {
    /// Raft node id, from 1: the number in `name` plus one, because 0 stands for "no node" on the
    /// wire. It is also the broker id under which the node registers while it follows.
    pub id: u64,
    /// As in `dLegerSelfId`: a letter and a number, such as `n0`.
    pub name: String,
    /// `host:port` of its Raft listener; resolved anew at each connect.
    pub address: String,
}

impl RaftPeer {
    /// Parses `n0-host:port`. The host may contain `-`, the id may not.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, address) = text.split_once('-')?;
        if !is_host_port(address) {
            return None;
        }
        Some(Self {
            id: node_id(name)?,
            name: name.to_owned(),
            address: address.to_owned(),
        })
    }

    /// The port in `address`.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .unwrap_or_default()
    }
}

/// The Raft group of this broker and its timing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftConfig {
    /// `dLegerGroup`; default `brokerName`.
    pub group: String,
    /// Raft node id of this broker, from 1; see [`RaftPeer::id`].
    pub self_id: u64,
    /// `dLegerSelfId`, such as `n0`.
    pub self_name: String,
    /// Every voter the group starts with, this broker included, in order of id. One peer when
    /// `enableDLegerCommitLog` is false.
    pub peers: Vec<RaftPeer>,
    /// `raftBindAddress`: local address of the Raft listener; default `bindAddress`.
    pub bind_address: IpAddr,
    /// Time between heartbeats of a leader. Unit: ms.
    pub heartbeat_ms: u64,
    /// Shortest silence of a leader after which an election starts. Unit: ms.
    pub election_min_ms: u64,
    /// Longest silence of a leader after which an election starts. Unit: ms.
    pub election_max_ms: u64,
    /// `raftFormGroup` (own key): who forms the group of nodes with empty data folders.
    pub formation: GroupFormation,
}

/// `raftFormGroup`: how a group comes into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupFormation {
    /// Every node of `dLegerPeers` with an empty data folder writes the same first entry.
    Peers,
    /// A node with an empty data folder waits until the admin service forms its group, or the
    /// leader of a group sends it the log.
    Admin,
}

impl RaftConfig {
    /// This broker among [`Self::peers`].
    #[must_use]
    pub fn self_peer(&self) -> Option<&RaftPeer> {
        self.peers.iter().find(|peer| peer.id == self.self_id)
    }
}

/// Node id of a DLedger id: `n0` is 1. At most six digits, so that it fits every peer's integer.
fn node_id(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(|first: char| first.is_ascii_alphabetic())?;
    let number = !digits.is_empty() && digits.len() <= 6;
    let number = number && digits.bytes().all(|digit| digit.is_ascii_digit());
    if number {
        digits.parse::<u64>().ok().map(|number| number + 1)
    } else {
        None
    }
}

/// Whether `address` is `host:port`, the host a name, an IPv4 address or an IPv6 one in brackets.
pub(super) fn is_host_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host_fits = bracketed.map_or_else(|| is_name(host), is_ipv6);
    host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Whether `host` is a name or an address, without a port and without brackets.
pub(super) fn is_host(host: &str) -> bool {
    is_name(host) || is_ipv6(host)
}

/// A name of a machine, with the `_` that some networks give them, or an IPv4 address.
fn is_name(host: &str) -> bool {
    let fits =
        |character: char| character.is_alphanumeric() || matches!(character, '-' | '.' | '_');
    !host.is_empty() && host.chars().all(fits)
}

fn is_ipv6(address: &str) -> bool {
    // A link-local address may name its interface.
    let (ip, interface) = address.split_once('%').unwrap_or((address, "eth0"));
    ip.parse::<Ipv6Addr>().is_ok() && is_name(interface)
}

/// Fills in what follows from other keys and checks the group.
pub(super) fn resolve(config: &mut BrokerConfig, raft_port: Option<u16>, report: &mut Report<'_>) {
    if config.raft.group.is_empty() {
        config.raft.group.clone_from(&config.broker_name);
    }
    if config.enable_dledger_commit_log {
        resolve_group(config, report);
    } else {
        resolve_single(config, raft_port, report);
    }
    check_timing(&config.raft, report);
}

fn resolve_group(config: &mut BrokerConfig, report: &mut Report<'_>) {
    let raft = &mut config.raft;
    raft.peers.sort_by_key(|peer| peer.id);
    for (key, missing) in [
        ("dLegerPeers", raft.peers.is_empty()),
        ("dLegerSelfId", raft.self_name.is_empty()),
    ] {
        if missing && report.properties.get(key).is_none() {
            report.problem(key, format_args!("enableDLegerCommitLog=true needs {key}"));
        }
    }
    for pair in raft.peers.windows(2) {
        if pair[0].id == pair[1].id {
            let name = &pair[0].name;
            report.problem(
                "dLegerPeers",
                format_args!("dLegerPeers names '{name}' twice"),
            );
        }
    }
    for (at, peer) in raft.peers.iter().enumerate() {
        if raft.peers[..at]
            .iter()
            .any(|other| other.address == peer.address)
        {
            let address = &peer.address;
            report.problem(
                "dLegerPeers",
                format_args!("dLegerPeers names {address} twice"),
            );
        }
    }
    if raft.peers.is_empty() || raft.self_name.is_empty() {
        return;
    }
    let self_name = &raft.self_name;
    match raft.peers.iter().find(|peer| peer.name == *self_name) {
        Some(peer) => raft.self_id = peer.id,
        None => {
            let text = format!("dLegerSelfId '{self_name}' is not in dLegerPeers");
            report.problem("dLegerSelfId", text);
        }
    }
}

/// A group of one: the broker is its own leader. Its Raft port serves learners that join later.
fn resolve_single(config: &mut BrokerConfig, raft_port: Option<u16>, report: &mut Report<'_>) {
    let port = raft_port.or_else(|| config.listen_port.checked_add(BrokerConfig::RAFT_PORT_STEP));
    let Some(port) = port else {
        let (listen_port, step) = (config.listen_port, BrokerConfig::RAFT_PORT_STEP);
        let text = format!("raftPort must be set, as listenPort {listen_port} + {step} is no port");
        report.problem("listenPort", text);
        return;
    };
    let (ip, raft) = (&config.broker_ip1, &mut config.raft);
    let address = if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    };
    if raft.self_name.is_empty() {
        "n0".clone_into(&mut raft.self_name);
    }
    match node_id(&raft.self_name) {
        Some(id) => raft.self_id = id,
        None => {
            let text = format!(
                "dLegerSelfId must be a letter and a number such as 'n0', not '{}'",
                raft.self_name
            );
            report.problem("dLegerSelfId", text);
        }
    }
    raft.peers = vec![RaftPeer {
        id: raft.self_id,
        name: raft.self_name.clone(),
        address,
    }];
}

fn check_timing(raft: &RaftConfig, report: &mut Report<'_>) {
    let RaftConfig {
        heartbeat_ms,
        election_min_ms,
        election_max_ms,
        ..
    } = *raft;
    report.check_range("raftHeartbeatIntervalMs", heartbeat_ms, 5..=10_000);
    report.check_range("raftElectionTimeoutMinMs", election_min_ms, 10..=60_000);
    report.check_range("raftElectionTimeoutMaxMs", election_max_ms, 10..=120_000);
    if election_min_ms >= election_max_ms {
        let text = format!(
            "raftElectionTimeoutMinMs {election_min_ms} must be less than \
             raftElectionTimeoutMaxMs {election_max_ms}"
        );
        report.problem("raftElectionTimeoutMinMs", text);
    }
    // One lost heartbeat must not start an election.
    if heartbeat_ms.saturating_mul(2) >= election_min_ms {
        let text = format!(
            "raftHeartbeatIntervalMs {heartbeat_ms} must be less than half of \
             raftElectionTimeoutMinMs {election_min_ms}"
        );
        report.problem("raftHeartbeatIntervalMs", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_id_and_an_address_whose_host_may_have_dashes() {
        let peer = RaftPeer::parse("n2-raft-a-2.raft-peers:40911").unwrap();
        assert_eq!((peer.id, peer.name.as_str(), peer.port()), (3, "n2", 40911));
        assert_eq!(peer.address, "raft-a-2.raft-peers:40911");
        assert_eq!(RaftPeer::parse("n0-[::1]:1").unwrap().address, "[::1]:1");
    }

    #[test]
    fn other_forms_of_a_peer_are_refused() {
        for text in [
            "",
            "n0",
            "0-h:1",
            "n-h:1",
            "nn0-h:1",
            "n0-h",
            "n0-h:0",
            "n0-:1",
            "n0-::1:2",
            "n0-[h:1",
            "n0-[h]:1",
            "n0-[]:1",
            "n0-a=b:1",
            "n0-a\tb:1",
        ] {
            assert_eq!(RaftPeer::parse(text), None, "{text}");
        }
    }
}
