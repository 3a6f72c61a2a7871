//! Locks of orderly consumption: 41 LOCK_BATCH_MQ, 42 UNLOCK_BATCH_MQ. They are replicated, so that
//! a new leader honours what the old one gave.

use std::{collections::BTreeSet, sync::Arc};

use raftmq_remoting::body::{self, LockBatchRequest, LockBatchResponse, MessageQueue};
use raftmq_state::{Command, Reply};

use super::{Handled, Request, propose, success};
use crate::broker::Broker;

/// Locks queues for a client; the answer names those it holds now.
pub(super) async fn lock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let asked: LockBatchRequest = body::decode(&request.command.body)?;
    let mut held = BTreeSet::new();
    let queues = queues_of(&asked.mq_set);
    if !queues.is_empty() {
        let command = Command::LockQueues {
            group: asked.consumer_group,
            client_id: asked.client_id,
            queues,
            now_ms: broker.clock.now_ms(),
        };
        if let Reply::Locked(queues) = propose(broker, command).await? {
            held = queues.into_iter().collect();
        }
    }
    let is_held = |queue: &MessageQueue| key_of(queue).is_some_and(|key| held.contains(&key));
    let lock_ok_mq_set = asked.mq_set.into_iter().filter(is_held).collect();
    Ok(success(request).with_body(body::encode(&LockBatchResponse { lock_ok_mq_set })))
}

/// Gives queues back.
pub(super) async fn unlock(broker: &Arc<Broker>, request: &Request) -> Handled {
    let asked: LockBatchRequest = body::decode(&request.command.body)?;
    let queues = queues_of(&asked.mq_set);
    if !queues.is_empty() {
        let command = Command::UnlockQueues {
            group: asked.consumer_group,
            client_id: asked.client_id,
            queues,
        };
        propose(broker, command).await?;
    }
    Ok(success(request))
}

fn key_of(queue: &MessageQueue) -> Option<(String, u32)> {
    Some((queue.topic.clone(), u32::try_from(queue.queue_id).ok()?))
}

/// The queues a command takes: each once, in order.
fn queues_of(queues: &[MessageQueue]) -> Vec<(String, u32)> {
    let unique: BTreeSet<_> = queues.iter().filter_map(key_of).collect();
    unique.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_each_legal_queue_once() {
        let queue = |queue_id| MessageQueue {
            topic: "T".into(),
            queue_id,
            ..Default::default()
        };
        let queues = queues_of(&[queue(2), queue(-1), queue(0), queue(2)]);
        assert_eq!(queues, [("T".to_owned(), 0), ("T".to_owned(), 2)]);
    }
}
