//! L8: a committed consumer offset never goes back.
//!
//! Each group and queue has one consumer here, which commits ever larger offsets. What it reads is
//! at least what it was told was committed before, unless a commit with unknown outcome was carried
//! out late; and it is something that was to be committed.

use std::collections::BTreeMap;

use crate::sim::history::{History, OffsetKind, OffsetStep, Outcome};

pub(super) fn check(history: &History) -> Vec<String> {
    let mut places: BTreeMap<(u32, u32), Vec<&OffsetStep>> = BTreeMap::new();
    for step in &history.offsets {
        places.entry(step.place).or_default().push(step);
    }
    let mut problems = Vec::new();
    for ((group, queue), mut steps) in places {
        steps.sort_by_key(|step| step.span);
        let mut known = None;
        let mut possible = Vec::new();
        for step in steps {
            match step.kind {
                OffsetKind::Commit(offset, Outcome::Done(())) => {
                    known = known.max(Some(offset));
                }
                OffsetKind::Commit(offset, Outcome::Unknown) => possible.push(offset),
                OffsetKind::Commit(_, Outcome::Refused) => {}
                OffsetKind::Read(read) => {
                    let is_late = read.is_some_and(|read| possible.contains(&read));
                    if read != known && !is_late {
                        problems.push(format!(
                            "group {group} queue {queue} reads {read:?} after {known:?} was \
                             committed"
                        ));
                    }
                }
            }
        }
    }
    problems
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
