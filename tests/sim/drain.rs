//! Reads everything that each replica has, when nobody sends any more.

use std::sync::Arc;
use std::time::Duration;

use raftmq::net::Net;

use super::client::{Client, Pulled};
use super::history::Drain;
use super::workload::Workload;

/// Pause before replicas are compared again, and before a pull is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Pulls of one place that may bring nothing.
const FAILURES_MAX: u32 = 40;

/// Ends of all queues, once they are the same on all replicas; `None` when they still differ after
/// `looks`.
pub async fn catch_up(
    net: Arc<dyn Net>,
    brokers: Vec<String>,
    queues: u32,
    looks: u32,
) -> Option<Vec<u64>> {
    let mut clients: Vec<Client> = brokers
        .iter()
        .map(|_| Client::new(Arc::clone(&net)))
        .collect();
    for _ in 0..looks {
        let mut found = Vec::new();
        for (broker, client) in brokers.iter().zip(&mut clients) {
            let mut ends = Vec::new();
            for queue in 0..queues {
                let place = (Workload::pullers_group(), queue);
                ends.push(client.end_of_own(broker, place).await);
            }
            found.push(ends);
        }
        let known = found.iter().flatten().all(Option::is_some);
        if known && found.windows(2).all(|pair| pair[0] == pair[1]) {
            return found.pop()?.into_iter().collect();
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

/// Everything that one replica has, up to the ends of all queues.
pub async fn drain(net: Arc<dyn Net>, broker: &str, ends: &[u64]) -> Result<Drain, String> {
    let mut client = Client::new(net);
    let mut drain = Drain::default();
    for (queue, end) in (0..).zip(ends) {
        let place = (Workload::pullers_group(), queue);
        let (mut first, mut ids) = (0, Vec::new());
        let mut failures = 0;
        while first + (ids.len() as u64) < *end {
            let from = first + ids.len() as u64;
            match client.pull(broker, place, from, false).await {
                Pulled::Moved(next) if ids.is_empty() && next > from => first = next,
                Pulled::Found(messages) if !messages.is_empty() => {
                    ids.extend(messages.iter().map(|(_, id)| *id));
                }
                other => {
                    failures += 1;
                    if failures > FAILURES_MAX {
                        return Err(format!("queue {queue} at {from} of {end}: {other:?}"));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drain.queues.insert(queue, (first, ids));
    }
    Ok(drain)
}
