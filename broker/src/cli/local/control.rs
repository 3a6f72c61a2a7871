//! How `raftmq local restart` reaches the `raftmq local` that runs: one line over loopback TCP each
//! way. The address stands in `local.json`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};

use crate::net::{Net, Stream};

/// Longest line of the protocol. Unit: bytes.
const LINE_BYTES_MAX: u64 = 1024;

/// Longest wait for a line, either way.
const LINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Commands that wait for the supervisor; it takes one in a few milliseconds.
const COMMANDS_MAX: usize = 8;

/// The verb of the only command.
const RESTART: &str = "restart ";

/// What the answer to a command that failed starts with.
const FAILED: &str = "error: ";

/// Asks to start a node again; the answer is the new pid or a sentence.
#[derive(Debug)]
pub(super) struct Restart {
    pub(super) node: String,
    pub(super) answer: oneshot::Sender<Result<u32, String>>,
}

/// Takes commands on a free port of 127.0.0.1 until the receiver is dropped.
pub(super) async fn listen(net: &dyn Net) -> io::Result<(SocketAddr, mpsc::Receiver<Restart>)> {
    let mut listener = net.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let address = listener.local_addr()?;
    let (sender, receiver) = mpsc::channel(COMMANDS_MAX);
    tokio::spawn(async move {
        while !sender.is_closed() {
            let Ok(accepted) = listener.accept().await else {
                return;
            };
            // One at a time: a command takes milliseconds, a silent caller LINE_TIMEOUT at most.
            let served = serve(accepted.stream, &sender);
            let _ = tokio::time::timeout(LINE_TIMEOUT, served).await;
        }
    });
    Ok((address, receiver))
}

/// Asks the `raftmq local` at `address` to start `node` again.
pub(super) async fn restart(net: &dyn Net, address: &str, node: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = net.connect(address).await?;
        stream
            .write_all(format!("{RESTART}{node}\n").as_bytes())
            .await?;
        read_line(&mut stream).await
    };
    let line = tokio::time::timeout(LINE_TIMEOUT, asked).await;
    let line = line.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match line.strip_prefix(FAILED) {
        Some(reason) => Err(io::Error::other(reason)),
        None => Ok(line),
    }
}

async fn serve(mut stream: Stream, commands: &mpsc::Sender<Restart>) -> io::Result<()> {
    let line = read_line(&mut stream).await?;
    let answer = match line.strip_prefix(RESTART) {
        Some(node) => {
            let (answer, answered) = oneshot::channel();
            let node = node.trim().to_owned();
            let sent = commands.send(Restart { node, answer }).await;
            let stopping = || Err("raftmq local is stopping".to_owned());
            if sent.is_ok() {
                answered.await.unwrap_or_else(|_| stopping())
            } else {
                stopping()
            }
        }
        None => Err(format!("unknown command '{line}'")),
    };
    let answer = match answer {
        Ok(pid) => format!("started, pid {pid}\n"),
        Err(reason) => format!("{FAILED}{reason}\n"),
    };
    stream.write_all(answer.as_bytes()).await
}

async fn read_line(stream: &mut Stream) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .await?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end().to_owned()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::TcpNet;

    #[tokio::test]
    async fn a_command_is_carried_out_and_its_answer_comes_back() {
        let (address, mut commands) = listen(&TcpNet).await.unwrap();
        let supervisor = tokio::spawn(async move {
            while let Some(Restart { node, answer }) = commands.recv().await {
                let known = node == "n2";
                let result = if known {
                    Ok(42)
                } else {
                    Err(format!("no node {node}"))
                };
                answer.send(result).unwrap();
            }
        });
        let address = address.to_string();
        assert_eq!(
            restart(&TcpNet, &address, "n2").await.unwrap(),
            "started, pid 42"
        );
        let error = restart(&TcpNet, &address, "n9").await.unwrap_err();
        assert_eq!(error.to_string(), "no node n9");
        supervisor.abort();
    }
}
