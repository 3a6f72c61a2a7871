//! Starting Raft: its runtime, its configuration, its state machine.

use std::{io, sync::Arc};

use openraft::{Config, Raft, SnapshotPolicy};
use tokio::{runtime::Handle, sync::oneshot};

use super::{
    ConsensusParts,
    log_store::{LogStore, SnapshotBoundary},
    machine::{RaftMachine, RaftMachineParts, SnapshotTarget},
    server::RaftServer,
    transport::Transport,
    types::{self, TypeConfig},
};
use crate::{checkpoint::CheckpointWriter, config::RaftConfig, host::is_simulated, net::Listener};

/// A runtime of one thread that lives until the returned sender is dropped. A simulation has one
/// thread for everything.
pub(super) fn start_runtime() -> Result<(Handle, oneshot::Sender<()>), io::Error> {
    if is_simulated() {
        return Ok((Handle::current(), oneshot::channel().0));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::Builder::new()
        .name("raft".into())
        .spawn(move || {
            // Ends with an error when the sender is dropped, which is the signal.
            let _ = runtime.block_on(stopped);
        })?;
    Ok((handle, stop))
}

pub(super) fn raft_config(
    cluster: &str,
    raft: &RaftConfig,
    enable_elect: bool,
) -> Result<Arc<Config>, io::Error> {
    let config = Config {
        enable_elect,
        cluster_name: format!("{cluster}/{}", raft.group),
        heartbeat_interval: raft.heartbeat_ms,
        election_timeout_min: raft.election_min_ms,
        election_timeout_max: raft.election_max_ms,
        enable_pre_vote: Some(true),
        // Snapshots are made by the retention only, and the log is purged by it only.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        max_payload_entries: 1024,
        broadcast_submitted_on_append: Some(true),
        // A leader that resumed its old term after a restart would count as serving before it has
        // applied everything it acknowledged: `Role::serving` relies on a new term's first entry.
        enable_leader_restore: Some(false),
        // The proposer keeps few batches in flight, so short channels suffice; they are
        // allocated in full.
        api_channel_size: Some(1024),
        notification_channel_size: Some(4096),
        state_machine_channel_size: Some(1024),
        // A leader that only hears from a minority lets the others elect.
        quorum_loss_probe_interval: Some(3 * raft.election_max_ms),
        ..Config::default()
    };
    config.validate().map(Arc::new).map_err(|error| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("raft timings: {error}"),
        )
    })
}

/// The state machine under Raft, and the index of the checkpoint that is Raft's snapshot.
pub(super) fn raft_machine(
    parts: &ConsensusParts,
    boundary: &SnapshotBoundary,
) -> Result<(RaftMachine, SnapshotTarget), io::Error> {
    let log = parts.machine.log();
    let writer = CheckpointWriter::start(
        Arc::clone(&parts.checkpoints),
        Arc::clone(log),
        Arc::clone(parts.machine.index()),
    );
    let snapshot_target = SnapshotTarget::begin(log, &parts.checkpoints, parts.applied);
    let machine = RaftMachine::new(RaftMachineParts {
        machine: Arc::clone(&parts.machine),
        checkpoints: Arc::clone(&parts.checkpoints),
        writer,
        snapshot_target: snapshot_target.clone(),
        boundary: Arc::clone(boundary),
        applied: parts.applied.map(types::log_id),
        membership: parts.membership.clone(),
        checkpoint_physical: parts.checkpoint_physical,
        metrics: Arc::clone(&parts.metrics),
    })?;
    Ok((machine, snapshot_target))
}

/// Starts Raft's tasks; the members are known when it returns, so that peers can be let in.
pub(super) async fn start_raft(
    runtime: &Handle,
    config: Arc<Config>,
    transport: &Transport,
    store: LogStore,
    machine: RaftMachine,
) -> Result<Raft<TypeConfig, RaftMachine>, io::Error> {
    let (id, network) = (transport.local.id, transport.clone());
    let raft = runtime
        .spawn(Raft::new(id, config, network, store, machine))
        .await;
    let raft = raft.map_err(io::Error::other)?.map_err(io::Error::other)?;
    let membership = raft
        .with_raft_state(|state| Arc::clone(state.membership_state.effective()))
        .await
        .map_err(io::Error::other)?;
    transport.local.members.set(&membership);
    Ok(raft)
}

/// Lets peers in.
pub(super) fn serve_peers(runtime: &Handle, server: RaftServer, listener: Box<dyn Listener>) {
    runtime.spawn(async move {
        let error = Arc::new(server).serve(listener).await;
        tracing::error!(%error, "raft port stops accepting");
    });
}
