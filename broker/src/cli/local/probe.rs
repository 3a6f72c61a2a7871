//! Asks a node's HTTP port how it is.

use std::io;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::net::Net;

/// Longest wait for an answer. A node that is busy longer counts as silent in this round only.
const PROBE_TIMEOUT: Duration = Duration::from_millis(800);

/// Largest answer that is read. A status with nine members takes some 3 KB.
const ANSWER_BYTES_MAX: u64 = 256 * 1024;

/// The fields of `/status` that matter here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeStatus {
    /// LEADER, FOLLOWER, CANDIDATE or LEARNER.
    pub(super) role: String,
    pub(super) term: u64,
    #[serde(default)]
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) not_ready_reason: Option<String>,
}

impl NodeStatus {
    pub(super) fn is_leader(&self) -> bool {
        self.role.eq_ignore_ascii_case("LEADER")
    }
}

/// The status of the node at `address`; `None` when it does not answer with one in time.
pub(super) async fn probe(net: &dyn Net, address: &str) -> Option<NodeStatus> {
    let answer = tokio::time::timeout(PROBE_TIMEOUT, get(net, address)).await;
    parse(&answer.ok()?.ok()?)
}

async fn get(net: &dyn Net, address: &str) -> io::Result<Vec<u8>> {
    let mut stream = net.connect(address).await?;
    // HTTP/1.0: the answer is not chunked and ends with the connection.
    let request = format!("GET /status HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_end(&mut answer)
        .await?;
    Ok(answer)
}

/// The JSON body of an HTTP answer, whatever its status code says.
fn parse(answer: &[u8]) -> Option<NodeStatus> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    serde_json::from_slice(&answer[end + 4..]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_body() {
        let answer = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n\
            {\"role\":\"LEADER\",\"term\":3,\"leader\":1,\"ready\":true,\"notReadyReason\":null}";
        let status = parse(answer).unwrap();
        assert!(status.is_leader() && status.ready);
        assert_eq!(status.term, 3);
    }

    #[test]
    fn anything_else_is_no_status() {
        for answer in [
            &b""[..],
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.0 404\r\n\r\nnot found",
        ] {
            assert_eq!(parse(answer), None);
        }
    }
}
