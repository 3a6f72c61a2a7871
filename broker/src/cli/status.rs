//! `raftmq status`: what a broker knows about its group, one line each time.

use clap::Args;
use raftmq_api::admin::{GetStatusRequest, Member, NodeStatus, Role, WatchStatusRequest};

use super::admin_client::{self, ADDRESS_DEFAULT, AdminClientError, refused};

/// Longest time between two lines of `--watch`. Unit: ms.
const WATCH_INTERVAL_MS: u32 = 5_000;

/// `raftmq status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// HTTP port of the broker.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    address: String,
    /// Print a line at every change, and every 5 s, until the broker stops.
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(args: &StatusArgs) -> Result<(), AdminClientError> {
    let mut client = admin_client::connect(&args.address).await?;
    if !args.watch {
        let answer = client.get_status(GetStatusRequest {}).await;
        let status = answer.map_err(|error| refused("get status", &error))?;
        println!("{}", line(status.get_ref()));
        return Ok(());
    }
    let failed = |error: tonic::Status| refused("watch status", &error);
    let request = WatchStatusRequest {
        progress_interval_ms: WATCH_INTERVAL_MS,
    };
    let mut stream = client
        .watch_status(request)
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(status) = stream.message().await.map_err(failed)? {
        println!("{}", line(&status));
    }
    Ok(())
}

fn line(status: &NodeStatus) -> String {
    let role = match status.role() {
        Role::Leader if !status.has_quorum => "leader-without-quorum",
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Unspecified => "unknown",
    };
    let leader = status.leader_id.map_or("-".to_owned(), |id| id.to_string());
    let applied = status
        .applied_index
        .map_or("-".to_owned(), |index| index.to_string());
    let ready = if status.ready {
        "ready".to_owned()
    } else {
        format!("not ready: {}", status.not_ready_reason)
    };
    format!(
        "{}/{} node {} {role} term {} leader {leader} applied {applied} voters [{}] learners [{}] \
         incarnation {} {ready}",
        status.cluster,
        status.group,
        status.node_id,
        status.term,
        members(&status.voters),
        members(&status.learners),
        status.incarnation,
    )
}

fn members(members: &[Member]) -> String {
    let shown = members
        .iter()
        .map(|member| format!("{}={}", member.id, member.address));
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_role_members_and_what_is_missing() {
        let status = NodeStatus {
            cluster: "c".to_owned(),
            group: "g".to_owned(),
            node_id: 2,
            role: Role::Learner.into(),
            voters: vec![Member {
                id: 1,
                address: "a:1".to_owned(),
                incarnation: String::new(),
            }],
            incarnation: "x".to_owned(),
            not_ready_reason: "waits".to_owned(),
            ..NodeStatus::default()
        };
        assert_eq!(
            line(&status),
            "c/g node 2 learner term 0 leader - applied - voters [1=a:1] learners [] \
             incarnation x not ready: waits"
        );
    }
}
