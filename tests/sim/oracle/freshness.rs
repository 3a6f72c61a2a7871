//! L7, freshness: what was acknowledged before the leader was asked where a queue ends is before that
//! end. With L1, L3 and L5 this makes a queue a linearizable log.

use std::collections::BTreeMap;

use crate::sim::history::{History, Moment, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut queues: BTreeMap<u32, Vec<(Moment, u64)>> = BTreeMap::new();
    for send in &history.sends {
        if let Outcome::Done(offset) = send.outcome {
            let acked = queues.entry(send.queue).or_default();
            acked.push((send.span.1, offset));
        }
    }
    for acked in queues.values_mut() {
        acked.sort_unstable();
        // The largest offset that was acknowledged by then.
        let mut largest = 0;
        for (_, offset) in acked {
            largest = largest.max(*offset);
            *offset = largest;
        }
    }
    let stale = history.ends.iter().filter_map(|told| {
        let acked = queues.get(&told.queue)?;
        let before = acked.partition_point(|(moment, _)| *moment < told.span.0);
        let (_, largest) = acked[before.checked_sub(1)?];
        (told.end <= largest).then(|| {
            format!(
                "queue {} is told to end at {} after offset {largest} was acknowledged",
                told.queue, told.end
            )
        })
    });
    stale.collect()
}

#[test]
fn an_end_before_what_was_acknowledged_is_found() {
    use crate::sim::history::End;
    let mut history = super::sample::sound();
    let mut told = End {
        queue: 0,
        span: (7, 8),
        end: 3,
    };
    history.ends.push(told);
    assert_eq!(check(&history), Vec::<String>::new());
    told.end = 2;
    history.ends.push(told);
    assert_eq!(check(&history).len(), 1);
    // It was asked before the last one was acknowledged.
    history.ends[1].span = (6, 8);
    assert_eq!(check(&history), Vec::<String>::new());
}
