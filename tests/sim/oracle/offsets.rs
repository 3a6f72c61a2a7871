//! L8: a committed consumer offset never goes back.
//!
//! Each group and queue has one consumer here, which commits ever larger offsets. What it reads is
//! at least what it was told was committed before, unless a commit with unknown outcome was carried
//! out late; and it is something that was to be committed. Others may read at the same time.

use std::collections::BTreeMap;

use crate::sim::history::{History, OffsetKind, OffsetStep, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut places: BTreeMap<(u32, u32), Vec<&OffsetStep>> = BTreeMap::new();
    for step in &history.offsets {
        places.entry(step.place).or_default().push(step);
    }
    let mut problems = Vec::new();
    for ((group, queue), steps) in places {
        let commits: Vec<Commit> = steps.iter().filter_map(|step| commit(step)).collect();
        for step in steps {
            let OffsetKind::Read(read) = step.kind else {
                continue;
            };
            let (begin, end) = step.span;
            let before = commits
                .iter()
                .filter(|one| one.is_done && one.span.1 < begin);
            let known = before.map(|one| one.offset).max();
            // What is committed meanwhile, or nobody knows when.
            let may_be =
                |one: &&Commit| one.span.0 < end && (!one.is_done || Some(one.offset) > known);
            let mut possible = commits.iter().filter(may_be);
            if read != known && !possible.any(|one| Some(one.offset) == read) {
                problems.push(format!(
                    "group {group} queue {queue} reads {read:?} after {known:?} was committed"
                ));
            }
        }
    }
    problems
}

/// A commit that was or may have been carried out.
struct Commit {
    offset: u64,
    span: (u64, u64),
    is_done: bool,
}

fn commit(step: &OffsetStep) -> Option<Commit> {
    let OffsetKind::Commit(offset, outcome) = step.kind else {
        return None;
    };
    (outcome != Outcome::Refused).then_some(Commit {
        offset,
        span: step.span,
        is_done: outcome == Outcome::Done(()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(kinds: &[OffsetKind]) -> History {
        let mut history = History::default();
        for kind in kinds {
            let span = (history.tick(), history.tick());
            history.offsets.push(OffsetStep {
                place: (0, 0),
                span,
                kind: *kind,
            });
        }
        history
    }

    #[test]
    fn an_offset_that_goes_back_or_comes_from_nowhere_is_found() {
        use OffsetKind::{Commit, Read};
        let done = Outcome::Done(());
        let sound = [
            Read(None),
            Commit(3, done),
            Commit(5, Outcome::Unknown),
            Read(Some(3)),
            Read(Some(5)),
            Commit(7, Outcome::Refused),
            Commit(8, done),
            Read(Some(8)),
        ];
        assert_eq!(check(&history(&sound)), Vec::<String>::new());
        for wrong in [None, Some(3), Some(7), Some(9)] {
            let mut steps = sound.to_vec();
            steps.push(Read(wrong));
            assert_eq!(check(&history(&steps)).len(), 1, "{wrong:?}");
        }
    }
}
