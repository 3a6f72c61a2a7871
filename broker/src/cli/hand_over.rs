//! `raftmq hand-over`: for the moment before a broker is stopped, such as a pod's preStop hook.

use std::time::Duration;

use clap::Args;
use raftmq_api::admin::admin_client::AdminClient;
use raftmq_api::admin::{GetStatusRequest, NodeStatus, TransferLeaderRequest, WatchStatusRequest};
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::Channel;

use super::admin_client::{self, ADDRESS_DEFAULT, AdminClientError, leads, refused};

/// Pause before a transfer that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// `raftmq hand-over`.
#[derive(Debug, Args)]
pub(crate) struct HandOverArgs {
    /// HTTP port of the broker that is to stop leading.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    address: String,
    /// Longest time it may take.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = admin_client::duration)]
    timeout: Duration,
    /// Stay so long afterwards: whoever is still led to this broker finds it alive, and it forwards
    /// what only the leader may answer. kube-proxy takes up to a second to lead them elsewhere.
    #[arg(long, value_name = "DURATION", value_parser = admin_client::duration)]
    linger: Option<Duration>,
}

/// Returns when the broker knows that another one leads; at once when it does not lead, and when
/// it is the only voter, which has nobody to hand over to. Then it lingers.
pub(crate) async fn run(args: &HandOverArgs) -> Result<(), AdminClientError> {
    let mut last_failure = String::new();
    let work = hand_over(&args.address, &mut last_failure);
    let result = match timeout(args.timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(AdminClientError::Timeout(
            "hand over",
            args.timeout,
            last_failure,
        )),
    };
    if let Some(linger) = args.linger {
        sleep(linger).await;
    }
    result
}

async fn hand_over(address: &str, last_failure: &mut String) -> Result<(), AdminClientError> {
    let mut client = admin_client::connect(address).await?;
    let mut asked = false;
    loop {
        let status = status(&mut client).await?;
        let node = status.node_id;
        if !leads(&status) {
            break if asked {
                let leader = await_other_leader(&mut client).await?;
                println!("node {node} handed over: node {leader} leads");
            } else {
                println!("node {node} does not lead");
            };
        }
        if status.voters.len() < 2 {
            println!("node {node} is the only voter: nobody can take over");
            break;
        }
        asked = true;
        match client
            .transfer_leader(TransferLeaderRequest { to: 0 })
            .await
        {
            Ok(_) => {}
            // It lost the role by itself meanwhile.
            Err(error) if error.code() == Code::FailedPrecondition => {}
            Err(error) if error.code() == Code::Unimplemented => {
                return Err(refused("transfer leader", &error));
            }
            Err(error) => {
                *last_failure = format!("; last: {}", error.message());
                sleep(RETRY_PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn status(client: &mut AdminClient<Channel>) -> Result<NodeStatus, AdminClientError> {
    let answer = client.get_status(GetStatusRequest {}).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|error| refused("get status", &error))
}

/// Waits until the broker knows another leader.
async fn await_other_leader(client: &mut AdminClient<Channel>) -> Result<u64, AdminClientError> {
    let failed = |error: tonic::Status| refused("watch status", &error);
    let request = WatchStatusRequest::default();
    let mut stream = client
        .watch_status(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(status) = stream.message().await.map_err(failed)? {
        if let Some(leader) = status.leader_id.filter(|leader| *leader != status.node_id) {
            return Ok(leader);
        }
    }
    Err(AdminClientError::Refused(
        "watch status",
        "the broker ended the stream".to_owned(),
    ))
}
