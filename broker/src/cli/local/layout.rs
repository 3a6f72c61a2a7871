//! Where everything of a local cluster is: ports, folders, the properties files it is started with
//! and `local.json`, which tells scripts.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::net::Net;

/// Ports of the first block. Those of the name server and the brokers are the ones of RocketMQ's
/// DLedger example.
const NAMESRV_PORT: u16 = 9876;
const BROKER_PORT: u16 = 30_911;
const RAFT_PORT: u16 = 40_911;
const HTTP_PORT: u16 = 5_557;

/// Distance of the brokers' ports: 30911, 30922, 30933.
const BROKER_PORT_STEP: u16 = 11;

/// Distance of two blocks of ports; more than the nodes of a block take.
const BLOCK_STEP: u16 = 100;

/// Blocks that are tried. The last one starts at Raft port 42811.
const BLOCKS_MAX: u16 = 20;

/// Most nodes of a local cluster; with more, a block would not fit into [`BLOCK_STEP`].
pub(super) const NODES_MAX: u16 = 9;

const _: () = assert!(NODES_MAX * BROKER_PORT_STEP < BLOCK_STEP);

/// Name of the file that describes a running cluster.
const DESCRIPTION: &str = "local.json";

const CLUSTER_NAME: &str = "RaftCluster";
const BROKER_NAME: &str = "RaftNode00";

/// `local.json`: what runs, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    /// `host:port` of the name server.
    pub(super) name_server: String,
    /// Process of the name server; none while it is not running.
    pub(super) name_server_pid: Option<u32>,
    /// `host:port` at which the running `raftmq local` takes commands; none after it stopped.
    pub(super) control: Option<String>,
    /// Process of `raftmq local` itself.
    pub(super) pid: Option<u32>,
    /// The brokers.
    pub(super) nodes: Vec<NodeDescription>,
}

/// One broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeDescription {
    /// `n1`, `n2`, ...: the `dLegerSelfId`.
    pub(super) name: String,
    /// `host:port` of the remoting protocol.
    pub(super) address: String,
    /// `host:port` between the brokers.
    pub(super) raft_address: String,
    /// `host:port` of metrics, probes and the admin service.
    pub(super) http_address: String,
    /// Process; none while it is not running.
    pub(super) pid: Option<u32>,
    /// Folder of the node: `broker.conf`, `raftmq.log`, `store/`.
    pub(super) data_dir: PathBuf,
}

impl Description {
    /// Block `block` of ports for `nodes` brokers.
    fn of_block(block: u16, nodes: u16, data_dir: &Path) -> Self {
        let address = |port: u16| format!("{}:{}", Ipv4Addr::LOCALHOST, port + block * BLOCK_STEP);
        let node = |index: u16| {
            let name = format!("n{}", index + 1);
            NodeDescription {
                data_dir: data_dir.join(&name),
                name,
                address: address(BROKER_PORT + index * BROKER_PORT_STEP),
                raft_address: address(RAFT_PORT + index),
                http_address: address(HTTP_PORT + index),
                pid: None,
            }
        };
        Self {
            name_server: address(NAMESRV_PORT),
            name_server_pid: None,
            control: None,
            pid: None,
            nodes: (0..nodes).map(node).collect(),
        }
    }

    /// The first block whose ports are all free. A folder that was used before keeps its ports if
    /// they are free, because its group knows them.
    pub(super) async fn choose(net: &dyn Net, nodes: u16, data_dir: &Path) -> Option<Self> {
        let old = Self::read(data_dir).ok();
        let old = old.filter(|old| old.nodes.len() == usize::from(nodes));
        let blocks = (0..BLOCKS_MAX).map(|block| Self::of_block(block, nodes, data_dir));
        for mut candidate in old.into_iter().chain(blocks) {
            if candidate.is_free(net).await {
                candidate.clear_pids();
                return Some(candidate);
            }
        }
        None
    }

    /// Reads `local.json` of a folder.
    pub(super) fn read(data_dir: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(data_dir.join(DESCRIPTION))?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }

    /// Replaces `local.json` in one step: a script never sees half of it.
    pub(super) fn write(&self, data_dir: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let new = data_dir.join("local.json.new");
        fs::write(&new, text)?;
        fs::rename(&new, data_dir.join(DESCRIPTION))
    }

    /// Forgets every process: nothing runs.
    pub(super) fn clear_pids(&mut self) {
        (self.pid, self.name_server_pid, self.control) = (None, None, None);
        for node in &mut self.nodes {
            node.pid = None;
        }
    }

    /// Creates the folders and writes the properties files. Returns the name server's.
    pub(super) fn write_configs(&self, data_dir: &Path) -> io::Result<PathBuf> {
        let folder = data_dir.join("namesrv");
        fs::create_dir_all(&folder)?;
        let path = folder.join("namesrv.conf");
        fs::write(&path, self.namesrv_config(&folder))?;
        for node in &self.nodes {
            fs::create_dir_all(&node.data_dir)?;
            fs::write(node.config_path(), self.broker_config(node))?;
        }
        Ok(path)
    }

    fn namesrv_config(&self, folder: &Path) -> String {
        format!(
            "listenPort={}\nbindAddress={}\nkvConfigPath={}\n",
            port_of(&self.name_server),
            Ipv4Addr::LOCALHOST,
            escape(&folder.join("kvConfig.json")),
        )
    }

    /// The properties of a node, in the words of RocketMQ's DLedger example.
    fn broker_config(&self, node: &NodeDescription) -> String {
        let peer = |node: &NodeDescription| format!("{}-{}", node.name, node.raft_address);
        let peers: Vec<String> = self.nodes.iter().map(peer).collect();
        let store = node.data_dir.join("store");
        let host = Ipv4Addr::LOCALHOST.to_string();
        let settings = [
            ("brokerClusterName", CLUSTER_NAME.to_owned()),
            ("brokerName", BROKER_NAME.to_owned()),
            ("brokerIP1", host.clone()),
            ("bindAddress", host),
            ("listenPort", port_of(&node.address).to_owned()),
            ("namesrvAddr", self.name_server.clone()),
            ("storePathRootDir", escape(&store)),
            ("storePathCommitLog", escape(&store.join("commitlog"))),
            ("enableDLegerCommitLog", "true".to_owned()),
            ("dLegerGroup", BROKER_NAME.to_owned()),
            ("dLegerPeers", peers.join(";")),
            ("dLegerSelfId", node.name.clone()),
            ("httpPort", port_of(&node.http_address).to_owned()),
        ];
        let line = |(key, value): &(&str, String)| format!("{key}={value}\n");
        settings.iter().map(line).collect()
    }

    async fn is_free(&self, net: &dyn Net) -> bool {
        let brokers = self.nodes.iter();
        let brokers =
            brokers.flat_map(|node| [&node.address, &node.raft_address, &node.http_address]);
        for address in std::iter::once(&self.name_server).chain(brokers) {
            let Ok(address) = address.parse::<SocketAddr>() else {
                return false;
            };
            if net.bind(address).await.is_err() {
                return false;
            }
        }
        true
    }
}

impl NodeDescription {
    pub(super) fn config_path(&self) -> PathBuf {
        self.data_dir.join("broker.conf")
    }
}

/// The port of a `host:port`.
fn port_of(address: &str) -> &str {
    address.rsplit_once(':').map_or("", |(_, port)| port)
}

/// A path as a value of a properties file, where a backslash starts an escape.
fn escape(path: &Path) -> String {
    path.display().to_string().replace('\\', "\\\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_has_the_documented_ports() {
        let description = Description::of_block(0, 3, Path::new("/d"));
        let of = |field: fn(&NodeDescription) -> &String| {
            description
                .nodes
                .iter()
                .map(field)
                .cloned()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(description.name_server, "127.0.0.1:9876");
        assert_eq!(of(|node| &node.name), "n1 n2 n3");
        assert_eq!(
            of(|node| &node.address),
            "127.0.0.1:30911 127.0.0.1:30922 127.0.0.1:30933"
        );
        assert_eq!(
            of(|node| &node.raft_address),
            "127.0.0.1:40911 127.0.0.1:40912 127.0.0.1:40913"
        );
        assert_eq!(
            of(|node| &node.http_address),
            "127.0.0.1:5557 127.0.0.1:5558 127.0.0.1:5559"
        );
    }

    #[test]
    fn no_two_ports_of_all_blocks_are_the_same() {
        let mut ports = Vec::new();
        for block in 0..BLOCKS_MAX {
            let description = Description::of_block(block, NODES_MAX, Path::new("/d"));
            ports.push(description.name_server);
            for node in description.nodes {
                ports.extend([node.address, node.raft_address, node.http_address]);
            }
        }
        let count = ports.len();
        ports.sort();
        ports.dedup();
        assert_eq!(ports.len(), count);
    }

    #[test]
    fn a_description_reads_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut description = Description::of_block(1, 3, folder.path());
        description.nodes[1].pid = Some(42);
        description.control = Some("127.0.0.1:1".to_owned());
        description.write(folder.path()).unwrap();
        assert_eq!(Description::read(folder.path()).unwrap(), description);
    }

    #[test]
    fn a_broker_is_configured_as_in_the_dledger_example() {
        let description = Description::of_block(0, 3, Path::new("/d"));
        let text = description.broker_config(&description.nodes[1]);
        for line in [
            "brokerName=RaftNode00",
            "listenPort=30922",
            "namesrvAddr=127.0.0.1:9876",
            "storePathCommitLog=/d/n2/store/commitlog",
            "enableDLegerCommitLog=true",
            "dLegerPeers=n1-127.0.0.1:40911;n2-127.0.0.1:40912;n3-127.0.0.1:40913",
            "dLegerSelfId=n2",
            "httpPort=5558",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} in\n{text}");
        }
    }
}
