//! The configuration of a group: `broker.conf`, which all its brokers share, and one small file for
//! each pod with its identity. Both are properties files; the broker lets the later file win.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::ConfigMap;

use super::{GroupInput, group_metadata};
use crate::names::{CONFIG_FILE, DATA_PATH, PORT_HTTP, PORT_NAMESRV, PORT_RAFT, PORT_REMOTING};
use crate::validate::ValidCluster;

/// The ConfigMap of a group.
#[must_use]
pub fn config_map(cluster: &ValidCluster, group: &GroupInput) -> ConfigMap {
    let mut files = BTreeMap::new();
    files.insert(CONFIG_FILE.to_owned(), shared_file(cluster, group));
    for (pod, node_id) in &group.members {
        let text = properties(&[("dLegerSelfId", node_name(*node_id))]);
        files.insert(format!("{pod}.conf"), text);
    }
    ConfigMap {
        metadata: group_metadata(cluster, &group.id, group.id.config()),
        data: Some(files),
        ..ConfigMap::default()
    }
}

/// DLedger's name of a node: the broker takes the number plus one as the Raft node id.
fn node_name(node_id: u64) -> String {
    format!("n{}", node_id.saturating_sub(1))
}

fn shared_file(cluster: &ValidCluster, group: &GroupInput) -> String {
    let raft = &cluster.spec.raft;
    let peers: Vec<String> = group
        .members
        .iter()
        .map(|(pod, id)| format!("{}-{}:{PORT_RAFT}", node_name(*id), group.id.pod_host(pod)))
        .collect();
    let any_address = match group.leader_ip {
        IpAddr::V4(_) => "0.0.0.0",
        IpAddr::V6(_) => "::",
    };
    let mut owned: Vec<(&str, String)> = vec![
        ("brokerClusterName", cluster.name.clone()),
        ("brokerName", group.id.group.clone()),
        ("bindAddress", any_address.to_owned()),
        ("listenPort", PORT_REMOTING.to_string()),
        (
            "leaderServiceAddress",
            host_port(group.leader_ip, PORT_REMOTING),
        ),
        ("namesrvAddr", name_servers(cluster)),
        ("httpPort", PORT_HTTP.to_string()),
        ("storePathRootDir", DATA_PATH.to_owned()),
        ("enableDLegerCommitLog", "true".to_owned()),
        ("dLegerGroup", group.id.group.clone()),
        ("dLegerPeers", peers.join(";")),
        ("raftFormGroup", "admin".to_owned()),
        ("raftHeartbeatIntervalMs", raft.heartbeat_ms.to_string()),
        (
            "raftElectionTimeoutMinMs",
            raft.election_timeout_min_ms.to_string(),
        ),
        (
            "raftElectionTimeoutMaxMs",
            raft.election_timeout_max_ms.to_string(),
        ),
    ];
    if cluster.namesrv_group() == Some(&group.id) {
        owned.push(("embeddedNamesrvPort", PORT_NAMESRV.to_string()));
    }
    let user: Vec<(&str, String)> = cluster
        .spec
        .config
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    // The user's keys first: should an owned one slip through, the later line wins.
    format!(
        "# Written by raftmq-operator; change spec.config of the RaftCluster instead.\n{}{}",
        properties(&user),
        properties(&owned)
    )
}

/// Every name server: the pods of the first group. Each broker registers with all of them.
fn name_servers(cluster: &ValidCluster) -> String {
    let Some(group) = cluster.namesrv_group() else {
        return String::new();
    };
    let servers: Vec<String> = cluster
        .pods(group)
        .map(|pod| format!("{}:{PORT_NAMESRV}", group.pod_host(&pod)))
        .collect();
    servers.join(";")
}

/// `host:port`, an IPv6 address in brackets.
fn host_port(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

fn properties(entries: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (key, value) in entries {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key}={}", escape(value));
    }
    text
}

/// A value of a properties file. Keys need nothing: they are letters and digits.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for (at, character) in value.char_indices() {
        match character {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            ' ' if at == 0 => escaped.push_str("\\ "),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_add_a_line() {
        let text = properties(&[("a", " x\nbrokerName=evil\\".to_owned())]);
        assert_eq!(text, "a=\\ x\\nbrokerName=evil\\\\\n");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn node_ids_become_dledger_names() {
        assert_eq!(node_name(1), "n0");
        assert_eq!(node_name(10), "n9");
    }
}
