//! L3, no loss: an acknowledged message stands at its acknowledged offset on every replica in the
//! end, unless it was deleted with everything before it.

use crate::sim::history::{History, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut problems = Vec::new();
    for send in &history.sends {
        let Outcome::Done(offset) = send.outcome else {
            continue;
        };
        for (replica, drain) in history.drains.iter().enumerate() {
            let queue = drain.queues.get(&send.queue);
            if history.deletes && queue.is_some_and(|(first, _)| offset < *first) {
                continue;
            }
            let found = drain.queues.get(&send.queue).and_then(|(first, ids)| {
                let place = usize::try_from(offset.checked_sub(*first)?).ok()?;
                ids.get(place).copied()
            });
            if found != Some(send.id) {
                problems.push(format!(
                    "message {} was acknowledged at queue {} offset {offset}; replica {replica} \
                     has {found:?} there",
                    send.id, send.queue
                ));
            }
        }
    }
    problems
}

#[test]
fn an_acknowledged_message_that_a_replica_lacks_is_found() {
    let mut history = super::sample::sound();
    history.drains[1].queues.insert(0, (0, vec![10, 11]));
    assert_eq!(check(&history).len(), 1);
    history.drains[1].queues.insert(0, (1, vec![11, 12]));
    assert_eq!(check(&history).len(), 1);
    history.deletes = true;
    assert!(check(&history).is_empty());
    history.drains[1].queues.insert(0, (1, vec![11]));
    assert_eq!(check(&history).len(), 1);
}
