//! L6, pulls: what is asked for from an offset comes from this offset on, one after the other, and
//! nobody is told to go back or to skip.

use crate::sim::history::History;

pub(super) fn check(history: &History) -> Vec<String> {
    let mut problems = Vec::new();
    for pull in &history.pulls {
        let offsets = pull.messages.iter().map(|(offset, _)| *offset);
        if !offsets
            .clone()
            .eq(pull.from..pull.from + pull.messages.len() as u64)
        {
            let offsets: Vec<u64> = offsets.collect();
            problems.push(format!(
                "queue {} from {} brought {offsets:?}",
                pull.queue, pull.from
            ));
        }
    }
    // Nobody asks for more than one message beyond what exists; over what was deleted one may be
    // told to go on.
    let moves = history.moves.iter();
    let moves = moves.filter(|(_, from, to)| to < from || !history.deletes && *from > 0);
    problems
        .extend(moves.map(|(queue, from, to)| {
            format!("queue {queue} from {from} is told to go on at {to}")
        }));
    problems
}

#[test]
fn a_skipped_message_and_an_offset_sent_back_are_found() {
    let mut history = super::sample::sound();
    history.pulls[0].messages.remove(0);
    history.moves.push((0, 2, 0));
    assert_eq!(check(&history).len(), 2);
    history.moves.push((0, 1, 2));
    assert_eq!(check(&history).len(), 3);
    history.deletes = true;
    assert_eq!(check(&history).len(), 2);
}
