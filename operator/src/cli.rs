//! The command line: `raftmq-operator run` and `raftmq-operator crd`.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

/// Runs RocketMQ-compatible brokers, replicated by Raft, on Kubernetes.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Operates RaftClusters until it is told to stop.
    Run(RunArgs),
    /// Prints the definition of RaftCluster as YAML.
    Crd,
}

/// Settings of `run`. Each can be given as an environment variable too.
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Namespaces to watch, separated by commas; all of them when absent.
    #[arg(long, env = "RAFTMQ_NAMESPACES", value_delimiter = ',')]
    pub namespaces: Vec<String>,

    /// Image of brokers whose RaftCluster names none.
    #[arg(long, env = "RAFTMQ_BROKER_IMAGE", default_value = concat!("raftmq:", env!("CARGO_PKG_VERSION")))]
    pub broker_image: String,

    /// Where /metrics, /livez and /readyz are served.
    #[arg(long, env = "RAFTMQ_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Namespace of the lease that lets one operator reconcile at a time; the namespace of the
    /// pod, or of the kubeconfig, when absent.
    #[arg(long, env = "RAFTMQ_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// Name of that lease.
    #[arg(long, env = "RAFTMQ_LEASE_NAME", default_value = "raftmq-operator")]
    pub lease_name: String,

    /// Name of this operator in the lease and in Events; must be unique. The name of its pod or
    /// host and its process id when absent.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Filter of the log, such as `info` or `raftmq_operator=debug`.
    #[arg(long, env = "RAFTMQ_LOG", default_value = "info")]
    pub log: String,

    /// Form of the log.
    #[arg(long, env = "RAFTMQ_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// A line for a person.
    Text,
    /// A JSON object for a log store.
    Json,
}
