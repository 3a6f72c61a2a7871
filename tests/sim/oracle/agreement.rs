//! L1, agreement: which message stands at a queue offset is one function, for all observers and
//! all time.

use super::sightings;
use crate::sim::history::History;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut seen: Vec<_> = sightings(history).collect();
    seen.sort_unstable();
    seen.dedup();
    let pairs = seen.windows(2).filter_map(|pair| match pair {
        [(queue, offset, first), (other, same, second)] if queue == other && offset == same => {
            Some((queue, offset, first, second))
        }
        _ => None,
    });
    pairs
        .map(|(queue, offset, first, second)| {
            format!("queue {queue} offset {offset} is message {first} and message {second}")
        })
        .collect()
}

#[test]
fn two_messages_at_one_offset_are_found() {
    let mut history = super::sample::sound();
    history.drains[1].queues.insert(0, (0, vec![10, 12, 11]));
    let found = check(&history);
    assert_eq!(found.len(), 2, "{found:?}");
}
