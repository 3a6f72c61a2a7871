//! L4, dense: queue offsets begin at 0, unless the first messages were deleted, and have no holes; replicas hold the same ones.

use std::collections::{BTreeMap, BTreeSet};

use super::sightings;
use crate::sim::history::History;

pub(super) fn check(history: &History) -> Vec<String> {
    if history.drains.is_empty() {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let mut ends: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for drain in &history.drains {
        for (queue, (first, ids)) in &drain.queues {
            if *first != 0 && !history.deletes {
                problems.push(format!("queue {queue} begins at {first}"));
            }
            let end = first + ids.len() as u64;
            ends.entry(*queue).or_default().insert(end);
        }
    }
    for (queue, ends) in &ends {
        if ends.len() > 1 {
            problems.push(format!("queue {queue} ends at {ends:?} on the replicas"));
        }
    }
    let beyond: BTreeSet<(u32, u64)> = sightings(history)
        .map(|(queue, offset, _)| (queue, offset))
        .filter(|(queue, offset)| {
            let end = ends.get(queue).and_then(BTreeSet::last);
            end.is_none_or(|end| offset >= end)
        })
        .collect();
    problems.extend(
        beyond
            .into_iter()
            .map(|(queue, offset)| format!("queue {queue} offset {offset} was seen and is gone")),
    );
    problems
}

#[test]
fn a_hole_at_the_begin_and_a_missing_end_are_found() {
    let mut history = super::sample::sound();
    for drain in &mut history.drains {
        drain.queues.insert(0, (1, vec![11]));
    }
    // Begins at 1, twice; offset 2 was acknowledged.
    assert_eq!(check(&history).len(), 3);
}
