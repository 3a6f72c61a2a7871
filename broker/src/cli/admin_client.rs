//! A client of the admin service, for the commands that talk to a running broker.

use std::time::Duration;

use raftmq_api::admin::NodeStatus;
use raftmq_api::admin::admin_client::AdminClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

/// `httpPort` of a broker on this machine.
pub(super) const ADDRESS_DEFAULT: &str = "127.0.0.1:5557";

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Units of a duration on the command line, in milliseconds.
const UNITS: [(&str, u64); 3] = [("ms", 1), ("s", 1_000), ("m", 60_000)];

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminClientError {
    #[error("'{0}' is no host:port")]
    Address(String),
    #[error("connect {0}: {1}; is the broker running, and is this its httpPort?")]
    Connect(String, String),
    #[error("{0}: {1}")]
    Refused(&'static str, String),
    #[error("{0} was not done in {1:?}{2}")]
    Timeout(&'static str, Duration, String),
    #[error("write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// Connects to the admin service at `address`, `host:port`.
pub(super) async fn connect(address: &str) -> Result<AdminClient<Channel>, AdminClientError> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| AdminClientError::Address(address.to_owned()))?;
    let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
    let channel = channel.map_err(|error| {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        // tonic itself only says "transport error".
        while let Some(error) = source {
            reason = error.to_string();
            source = error.source();
        }
        AdminClientError::Connect(address.to_owned(), reason)
    })?;
    Ok(AdminClient::new(channel))
}

/// What a refused call says.
pub(super) fn refused(what: &'static str, status: &tonic::Status) -> AdminClientError {
    let reason = match status.code() {
        Code::Unimplemented => "the broker is of a version without it".to_owned(),
        _ => status.message().to_owned(),
    };
    AdminClientError::Refused(what, reason)
}

/// Whether this node leads, serving or about to.
pub(super) fn leads(status: &NodeStatus) -> bool {
    status.leader_id == Some(status.node_id)
}

/// A duration with its unit: `500ms`, `10s` or `1m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let unit_ms = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, ms)| *ms);
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0);
    match (number, unit_ms) {
        (Some(number), Some(unit_ms)) => Ok(Duration::from_millis(number.saturating_mul(unit_ms))),
        _ => Err("must be a duration such as 500ms, 10s or 1m".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "10", "s", "0s", "-1s", "1h", "1.5s", "\u{e9}"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
