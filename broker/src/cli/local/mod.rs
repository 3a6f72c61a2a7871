//! `raftmq local`: a name server and several brokers as child processes on this machine.

mod children;
mod control;
mod layout;
mod probe;
mod watch;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use futures::future::join_all;
use tokio::sync::mpsc;

use self::children::{Server, lock, stop};
use self::control::Restart;
use self::layout::{Description, NODES_MAX};
use self::probe::{NodeStatus, probe};
use self::watch::{Sight, Watch};
use super::shutdown::shutdown_signal;
use crate::net::TcpNet;

/// Time between two looks at the nodes. Short, because the notice about a new leader tells how
/// long the election took.
const ROUND: Duration = Duration::from_millis(100);

/// Time between two questions to the nodes while every process runs and one leads: an idle cluster
/// should cost next to nothing. A process that ends is noticed within a [`ROUND`] all the same.
const SETTLED_ROUND: Duration = Duration::from_secs(1);

/// How long the cluster may take to start. A broker with much data on a slow disk recovers within
/// seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// `raftmq local`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct LocalArgs {
    #[command(subcommand)]
    command: Option<LocalCommand>,
    /// Brokers to run.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Folder for data, logs and local.json [default: ~/.raftmq/local].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum LocalCommand {
    /// Start a node again that was killed; raftmq local must still be running.
    Restart {
        /// n1, n2, ...
        node: String,
        /// Folder that raftmq local runs with [default: ~/.raftmq/local].
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

/// Why a local cluster could not start, or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    #[error("{}: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("{} is in use by another raftmq local", .0.display())]
    InUse(PathBuf),
    #[error("{} holds a cluster of {old} nodes; use --nodes {old} or another --data-dir", path.display())]
    OtherCount { path: PathBuf, old: usize },
    #[error("no free block of ports on 127.0.0.1")]
    NoPorts,
    #[error("start {name}: {source}")]
    Start { name: String, source: io::Error },
    #[error("{name} ended while the cluster was starting: {reason}\n{log}")]
    EndedEarly {
        name: String,
        reason: String,
        log: String,
    },
    #[error("not ready after {} s: {waiting}", START_TIMEOUT.as_secs())]
    NotReady { waiting: String },
    #[error("raftmq local does not run with {}", .0.display())]
    NotRunning(PathBuf),
    #[error("restart {node}: {source}")]
    Restart { node: String, source: io::Error },
    #[error("listen for signals: {0}")]
    Signal(io::Error),
}

/// Runs a cluster until it is told to stop, or restarts a node of one that runs.
pub(crate) async fn run(args: LocalArgs) -> Result<(), LocalError> {
    match args.command {
        Some(LocalCommand::Restart { node, data_dir }) => {
            let answer = restart(&node, &data_folder(data_dir)).await?;
            println!("{node} {answer}");
            Ok(())
        }
        None => run_cluster(args.nodes, &data_folder(args.data_dir)).await,
    }
}

fn data_folder(argument: Option<PathBuf>) -> PathBuf {
    let folder = argument.unwrap_or_else(|| {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let home = home.map_or_else(|| PathBuf::from("."), PathBuf::from);
        home.join(".raftmq").join("local")
    });
    // Children and scripts run in other folders.
    std::path::absolute(&folder).unwrap_or(folder)
}

async fn restart(node: &str, data_dir: &Path) -> Result<String, LocalError> {
    let not_running = || LocalError::NotRunning(data_dir.to_owned());
    let description = Description::read(data_dir).map_err(|_| not_running())?;
    let control = description.control.ok_or_else(not_running)?;
    control::restart(&TcpNet, &control, node)
        .await
        .map_err(|source| {
            if source.kind() == io::ErrorKind::ConnectionRefused {
                return not_running();
            }
            LocalError::Restart {
                node: node.to_owned(),
                source,
            }
        })
}

async fn run_cluster(nodes: u16, data_dir: &Path) -> Result<(), LocalError> {
    let folder_error = |source| LocalError::Folder {
        path: data_dir.to_owned(),
        source,
    };
    let _lock = lock(data_dir).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => LocalError::InUse(data_dir.to_owned()),
        _ => folder_error(error),
    })?;
    if let Ok(old) = Description::read(data_dir)
        && old.nodes.len() != usize::from(nodes)
    {
        return Err(LocalError::OtherCount {
            path: data_dir.to_owned(),
            old: old.nodes.len(),
        });
    }
    let mut shutdown = shutdown_signal().map_err(LocalError::Signal)?;
    let chosen = Description::choose(&TcpNet, nodes, data_dir).await;
    let mut description = chosen.ok_or(LocalError::NoPorts)?;
    let namesrv_config = description.write_configs(data_dir).map_err(folder_error)?;
    let (control, commands) = control::listen(&TcpNet).await.map_err(folder_error)?;
    description.control = Some(control.to_string());
    description.pid = Some(std::process::id());
    let program = std::env::current_exe().map_err(folder_error)?;
    let mut servers = vec![Server::new("namesrv", "namesrv", &program, namesrv_config)];
    for node in &description.nodes {
        servers.push(Server::new(
            &node.name,
            "broker",
            &program,
            node.config_path(),
        ));
    }
    let mut cluster = Cluster {
        data_dir: data_dir.to_owned(),
        description,
        servers,
        watch: Watch::default(),
        started: Instant::now(),
        serving: false,
    };
    let result = tokio::select! { biased;
        _ = shutdown.wait_for(|stop| *stop) => Ok(()),
        result = cluster.start_and_watch(commands) => result,
    };
    println!("stopping");
    stop(&mut cluster.servers).await;
    cluster.description.clear_pids();
    cluster.description.write(data_dir).map_err(folder_error)?;
    result
}

/// A cluster that runs.
struct Cluster {
    data_dir: PathBuf,
    description: Description,
    /// The name server, then the brokers in the order of the description.
    servers: Vec<Server>,
    watch: Watch,
    started: Instant,
    /// The table was printed.
    serving: bool,
}

impl Cluster {
    async fn start_and_watch(
        &mut self,
        mut commands: mpsc::Receiver<Restart>,
    ) -> Result<(), LocalError> {
        for place in 0..self.servers.len() {
            self.start_server(place)?;
        }
        self.describe()?;
        self.until_ready(&mut commands).await?;
        let mut running = self.running();
        let mut settled_until = Instant::now();
        loop {
            self.pause(&mut commands).await;
            if self.running() == running && Instant::now() < settled_until {
                continue;
            }
            running = self.running();
            let statuses = self.look().await?;
            if waiting_for(&self.description, &statuses).is_none() {
                settled_until = Instant::now() + SETTLED_ROUND;
            }
        }
    }

    /// Which processes run now; asks the system, not the nodes.
    fn running(&mut self) -> Vec<bool> {
        let servers = self.servers.iter_mut();
        servers.map(|server| server.ended().is_none()).collect()
    }

    /// Lets a round pass and carries out a command that comes meanwhile.
    async fn pause(&mut self, commands: &mut mpsc::Receiver<Restart>) {
        tokio::select! { biased;
            Some(command) = commands.recv() => {
                let result = self.restart(&command.node);
                // The caller may have gone; the node runs anyway.
                let _ = command.answer.send(result);
            }
            () = tokio::time::sleep(ROUND) => {}
        }
    }

    fn start_server(&mut self, place: usize) -> Result<(), LocalError> {
        let server = &mut self.servers[place];
        server.start().map_err(|source| LocalError::Start {
            name: server.name.clone(),
            source,
        })
    }

    fn restart(&mut self, node: &str) -> Result<u32, String> {
        let place = self.servers.iter().position(|server| server.name == node);
        let place = place.ok_or_else(|| format!("there is no node {node}"))?;
        if self.servers[place].ended().is_none() {
            let pid = self.servers[place].pid().unwrap_or_default();
            return Err(format!("{node} runs, pid {pid}"));
        }
        self.start_server(place)
            .map_err(|error| error.to_string())?;
        self.describe().map_err(|error| error.to_string())?;
        self.servers[place]
            .pid()
            .ok_or_else(|| format!("{node} ended at once"))
    }

    /// Waits until every broker says that it is ready, with a line about the progress.
    async fn until_ready(
        &mut self,
        commands: &mut mpsc::Receiver<Restart>,
    ) -> Result<(), LocalError> {
        let mut line = ProgressLine::default();
        loop {
            let statuses = self.look().await?;
            for server in &mut self.servers {
                if let Some(reason) = server.ended() {
                    line.end();
                    return Err(LocalError::EndedEarly {
                        name: server.name.clone(),
                        reason,
                        log: server.log_tail(),
                    });
                }
            }
            let waiting = waiting_for(&self.description, &statuses);
            let Some(waiting) = waiting else {
                line.end();
                println!("{}", self.table(&statuses));
                self.serving = true;
                return Ok(());
            };
            if self.started.elapsed() > START_TIMEOUT {
                line.end();
                return Err(LocalError::NotReady { waiting });
            }
            line.show(&format!("starting: {waiting}"));
            self.pause(commands).await;
        }
    }

    /// Looks at every process and node once, prints what is new, keeps `local.json` up to date.
    async fn look(&mut self) -> Result<Vec<Option<NodeStatus>>, LocalError> {
        let nodes = self.description.nodes.iter();
        let statuses = join_all(nodes.map(|node| probe(&TcpNet, &node.http_address))).await;
        let mut sights = Vec::new();
        for (server, status) in self.servers[1..].iter_mut().zip(&statuses) {
            sights.push(Sight {
                name: server.name.clone(),
                ended: server.ended(),
                pid: server.pid(),
                status: status.clone(),
            });
        }
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut notices = self.watch.observe(now_ms, &sights);
        let namesrv_ran = self.description.name_server_pid.is_some();
        if let Some(reason) = self.servers[0].ended()
            && namesrv_ran
        {
            notices.push(format!("namesrv ended: {reason}"));
        }
        // While the cluster starts, the progress line and the table say it all.
        for notice in notices.iter().filter(|_| self.serving) {
            println!("{:>8.1} s  {notice}", self.started.elapsed().as_secs_f64());
        }
        self.describe()?;
        Ok(statuses)
    }

    /// Writes `local.json` when a process has started or ended.
    fn describe(&mut self) -> Result<(), LocalError> {
        let before = self.description.clone();
        self.description.name_server_pid = self.servers[0].pid();
        for (node, server) in self.description.nodes.iter_mut().zip(&self.servers[1..]) {
            node.pid = server.pid();
        }
        if self.description == before {
            return Ok(());
        }
        let written = self.description.write(&self.data_dir);
        written.map_err(|source| LocalError::Folder {
            path: self.data_dir.clone(),
            source,
        })
    }

    fn table(&self, statuses: &[Option<NodeStatus>]) -> String {
        let description = &self.description;
        let mut text = format!(
            "ready after {:.1} s, data in {}\n\n",
            self.started.elapsed().as_secs_f64(),
            self.data_dir.display()
        );
        let mut row = |cells: [&str; 6]| {
            let [name, role, remoting, raft, http, pid] = cells;
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  {name:<8} {role:<9} {remoting:<16} {raft:<16} {http:<22} {pid}"
            );
        };
        row(["NODE", "ROLE", "REMOTING", "RAFT", "HTTP", "PID"]);
        let pid = |pid: Option<u32>| pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let namesrv_pid = pid(description.name_server_pid);
        row([
            "namesrv",
            "-",
            &description.name_server,
            "-",
            "-",
            &namesrv_pid,
        ]);
        for (node, status) in description.nodes.iter().zip(statuses) {
            let role = status
                .as_ref()
                .map_or("-".to_owned(), |status| status.role.to_ascii_lowercase());
            let http = format!("http://{}", node.http_address);
            row([
                &node.name,
                &role,
                &node.address,
                &node.raft_address,
                &http,
                &pid(node.pid),
            ]);
        }
        let victim = self.watch.leader().unwrap_or("n1");
        let _ = write!(
            text,
            "\n  clients       namesrvAddr={}\n  kill a node   kill -9 PID\n  \
             bring it back raftmq local restart {victim} --data-dir {}\n  stop all      Ctrl-C\n",
            description.name_server,
            self.data_dir.display()
        );
        text
    }
}

/// What the start still waits for; `None` when every broker is ready and one of them leads.
fn waiting_for(description: &Description, statuses: &[Option<NodeStatus>]) -> Option<String> {
    let mut waiting = Vec::new();
    for (node, status) in description.nodes.iter().zip(statuses) {
        match status {
            None => waiting.push(format!("{} starts", node.name)),
            Some(status) if !status.ready => {
                let reason = status.not_ready_reason.as_deref().unwrap_or("is not ready");
                waiting.push(format!("{}: {reason}", node.name));
            }
            Some(_) => {}
        }
    }
    let led = statuses.iter().flatten().any(NodeStatus::is_leader);
    if waiting.is_empty() && !led {
        waiting.push("no leader yet".to_owned());
    }
    (!waiting.is_empty()).then(|| waiting.join(", "))
}

/// A line that is overwritten on a terminal, and printed when it changes elsewhere.
#[derive(Debug, Default)]
struct ProgressLine {
    shown: String,
}

impl ProgressLine {
    fn show(&mut self, line: &str) {
        if line == self.shown {
            return;
        }
        if io::stdout().is_terminal() {
            // Back to the start of the line, and clear it.
            print!("\r\u{1b}[2K{line}");
            let _ = io::stdout().flush();
        } else {
            println!("{line}");
        }
        line.clone_into(&mut self.shown);
    }

    fn end(&mut self) {
        if !self.shown.is_empty() && io::stdout().is_terminal() {
            print!("\r\u{1b}[2K");
        }
        self.shown.clear();
    }
}
