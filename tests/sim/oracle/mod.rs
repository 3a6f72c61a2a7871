//! Judges a history: what users were promised, one check a file, each under its id.
//!
//! Offsets order all messages of a queue, so that every check sorts and compares; none searches.

mod agreement;
mod dense;
mod duplicates;
mod freshness;
mod gaps;
mod loss;
mod offsets;
mod phantom;
mod real_time;

use super::history::{History, MessageId};

/// A check: every way in which a history breaks a promise.
type Check = fn(&History) -> Vec<String>;

const CHECKS: [(&str, Check); 9] = [
    ("L1", agreement::check),
    ("L2", phantom::check),
    ("L3", loss::check),
    ("L4", dense::check),
    ("L5", real_time::check),
    ("L6", gaps::check),
    ("L7", freshness::check),
    ("L8", offsets::check),
    ("L10", duplicates::check),
];

/// Every violation in `history`, beginning with the id of the promise.
pub fn judge(history: &History) -> Vec<String> {
    let found = CHECKS.iter().flat_map(|(id, check)| {
        let problems = check(history).into_iter();
        problems.map(move |problem| format!("{id}: {problem}"))
    });
    found.collect()
}

/// Queue, queue offset and id of everything that anybody saw of the log: acknowledgements, pulls,
/// the replicas at the end.
fn sightings(history: &History) -> impl Iterator<Item = (u32, u64, MessageId)> + '_ {
    use super::history::Outcome;
    let acked = history.sends.iter().filter_map(|send| match send.outcome {
        Outcome::Done(offset) => Some((send.queue, offset, send.id)),
        Outcome::Refused | Outcome::Unknown => None,
    });
    let pulled = history.pulls.iter().flat_map(|pull| {
        let messages = pull.messages.iter();
        messages.map(|(offset, id)| (pull.queue, *offset, *id))
    });
    let drained = history.drains.iter().flat_map(|drain| {
        drain.queues.iter().flat_map(|(queue, (first, ids))| {
            let ids = ids.iter().zip(*first..);
            ids.map(|(id, offset)| (*queue, offset, *id))
        })
    });
    acked.chain(pulled).chain(drained)
}

#[cfg(test)]
mod sample {
    //! Histories to plant violations in.
    use super::super::history::{Drain, History, MessageId, Outcome, Pull, Send};

    pub(super) fn send(id: MessageId, span: (u64, u64), outcome: Outcome<u64>) -> Send {
        Send {
            id,
            queue: 0,
            span,
            outcome,
        }
    }

    /// Three messages one after the other in queue 0, seen by a puller and held by two replicas.
    pub(super) fn sound() -> History {
        let mut history = History::default();
        for id in 0..3 {
            let span = (2 * id + 1, 2 * id + 2);
            history.sends.push(send(10 + id, span, Outcome::Done(id)));
        }
        history.pulls.push(Pull {
            queue: 0,
            from: 0,
            messages: vec![(0, 10), (1, 11)],
        });
        let drain = Drain {
            queues: [(0, (0, vec![10, 11, 12]))].into(),
        };
        history.drains = vec![drain.clone(), drain];
        history
    }

    #[test]
    fn a_sound_history_breaks_no_promise() {
        assert_eq!(super::judge(&sound()), Vec::<String>::new());
    }
}
