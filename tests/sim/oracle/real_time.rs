//! L5, real time: of two messages of a queue, the one that was acknowledged before the other was
//! sent has the smaller offset.

use std::collections::BTreeMap;

use crate::sim::history::{History, Moment, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut queues: BTreeMap<u32, Vec<(u64, Moment, Moment)>> = BTreeMap::new();
    for send in &history.sends {
        if let Outcome::Done(offset) = send.outcome {
            let (begun, ended) = send.span;
            let acked = queues.entry(send.queue).or_default();
            acked.push((offset, begun, ended));
        }
    }
    let mut problems = Vec::new();
    for (queue, mut acked) in queues {
        acked.sort_unstable();
        // From the end: whatever ended first among the larger offsets must not have ended before
        // this one began.
        let mut first_end = Moment::MAX;
        for (offset, begun, ended) in acked.into_iter().rev() {
            if first_end < begun {
                problems.push(format!(
                    "queue {queue} offset {offset} was sent after a larger offset was acknowledged"
                ));
            }
            first_end = first_end.min(ended);
        }
    }
    problems
}

#[test]
fn offsets_against_the_order_of_acknowledgements_are_found() {
    let mut history = super::sample::sound();
    history.sends[0].outcome = Outcome::Done(2);
    history.sends[2].outcome = Outcome::Done(0);
    assert_eq!(check(&history).len(), 2);
}
