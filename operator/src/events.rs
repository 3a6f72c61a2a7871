//! Events on a `RaftCluster`, as `kubectl describe` shows them.

use kube::Client;
use kube::Resource as _;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::timeout;

use crate::apply::API_TIMEOUT;
use crate::names::OPERATOR;
use crate::plan::Notice;
use crate::streams::Guarded;

/// Longest note the API server takes. Unit: bytes.
const NOTE_BYTES_MAX: usize = 1024;

/// Publishes Events. One for the whole process, because it joins repetitions.
#[derive(Clone)]
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Events")
    }
}

impl Events {
    /// Events that name `instance` as their reporter.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter {
            controller: OPERATOR.to_owned(),
            instance: Some(instance),
        };
        Self(Recorder::new(client, reporter))
    }

    /// Publishes one. An Event that is lost is only logged: nothing depends on it.
    pub async fn publish(&self, cluster: &Guarded, notice: &Notice) {
        let mut note = notice.note.clone();
        note.truncate(note.floor_char_boundary(NOTE_BYTES_MAX));
        let event = Event {
            type_: if notice.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: notice.reason.clone(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let about = cluster.object_ref(&());
        match timeout(API_TIMEOUT, self.0.publish(&event, &about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, reason = notice.reason, "publish event"),
            Err(_) => tracing::warn!(
                reason = notice.reason,
                "publish event: the API server does not answer"
            ),
        }
    }
}
