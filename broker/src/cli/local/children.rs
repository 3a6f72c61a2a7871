//! The processes of a local cluster: starting, noticing their end, stopping.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use crate::cli::shutdown::{PARENT_PIPE_STDIN, PARENT_PIPE_VARIABLE};

/// How long a process may take to stop before it is killed. A broker hands over and syncs its log
/// within a second; the rest is reserve for a slow disk.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Last lines of a log that are shown when a process ends while the cluster starts.
const LOG_LINES: usize = 12;

/// A process of the cluster, running or ended.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) name: String,
    /// What is run: `broker` or `namesrv`.
    command: &'static str,
    config: PathBuf,
    log: PathBuf,
    program: PathBuf,
    child: Option<Child>,
    ended: Option<String>,
}

impl Server {
    /// A server that was not started yet; its log is beside its configuration.
    pub(super) fn new(name: &str, command: &'static str, program: &Path, config: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            command,
            log: config.with_file_name("raftmq.log"),
            config,
            program: program.to_owned(),
            child: None,
            ended: None,
        }
    }

    /// Starts the process; its output goes to the log, which is kept.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = Command::new(&self.program)
            .arg(self.command)
            .arg("-c")
            .arg(&self.config)
            // The pipe ends when this process does, and the server stops with it.
            .env(PARENT_PIPE_VARIABLE, PARENT_PIPE_STDIN)
            .env_remove("NAMESRV_ADDR")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in a terminal goes to this process only, which then stops the servers.
            .process_group(0)
            .spawn()?;
        self.child = Some(child);
        self.ended = None;
        Ok(())
    }

    /// Process id while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// How the process ended; `None` while it runs.
    pub(super) fn ended(&mut self) -> Option<String> {
        if let Some(child) = &mut self.child {
            let ended = match child.try_wait() {
                Ok(None) => return None,
                Ok(Some(status)) => status.to_string(),
                Err(error) => format!("its state cannot be read: {error}"),
            };
            self.child = None;
            self.ended = Some(ended);
        }
        self.ended.clone()
    }

    /// The end of the log, for the message about a failed start.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        format!("{}:\n  {}", self.log.display(), tail.join("\n  "))
    }

    /// Asks the process to stop by ending its standard input.
    fn ask_to_stop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
        }
    }

    /// Waits for the end, kills the process when it takes too long.
    async fn wait(&mut self) {
        let Some(child) = &mut self.child else { return };
        if tokio::time::timeout(STOP_TIMEOUT, child.wait())
            .await
            .is_err()
        {
            eprintln!("{} does not stop, killing it", self.name);
            let _ = child.kill().await;
        }
        self.child = None;
    }
}

/// Stops every server, all at once.
pub(super) async fn stop(servers: &mut [Server]) {
    for server in servers.iter_mut() {
        server.ask_to_stop();
    }
    for server in servers {
        server.wait().await;
    }
}

/// Takes the lock of a data folder; it is held until the file is dropped.
pub(super) fn lock(data_dir: &Path) -> io::Result<File> {
    fs::create_dir_all(data_dir)?;
    let path = data_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
        fs::TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_folder_is_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        lock(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn a_server_that_ends_is_seen_and_can_be_started_again() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("broker.conf");
        let mut server = Server::new("n1", "broker", Path::new("/bin/false"), config);
        for _ in 0..2 {
            server.start().unwrap();
            assert!(server.pid().is_some());
            server.child.as_mut().unwrap().wait().await.unwrap();
            assert_eq!(server.ended().as_deref(), Some("exit status: 1"));
            assert_eq!(server.pid(), None);
        }
    }
}
