//! Whether this node may stand for election: as long as nothing is against it.
//!
//! Several parts of the broker have a say and know nothing of one another. Each withdraws its own
//! objection only, so that none lets the node stand against the word of another.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

/// What is against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Objection {
    /// The disk has no room for the entries of a leader.
    NoRoom,
    /// The end of the log is lost: `guard.rs`.
    EndLost,
}

/// The objections of the moment.
pub(super) struct Candidacy {
    against: Mutex<BTreeSet<Objection>>,
    /// Lets the node stand or not. Runs under the lock, so that the last run tells the truth.
    apply: Box<dyn Fn(bool) + Send + Sync>,
}

impl std::fmt::Debug for Candidacy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Candidacy")
            .field("against", &self.against)
            .finish_non_exhaustive()
    }
}

impl Candidacy {
    /// Nothing is against it yet; `apply` runs at every change of the answer.
    pub(super) fn new(apply: impl Fn(bool) + Send + Sync + 'static) -> Self {
        apply(true);
        Self {
            against: Mutex::default(),
            apply: Box::new(apply),
        }
    }

    /// Whether this objection is raised.
    pub(super) fn is_objected(&self, objection: Objection) -> bool {
        let against = self.against.lock().unwrap_or_else(PoisonError::into_inner);
        against.contains(&objection)
    }

    /// Raises an objection or withdraws it.
    pub(super) fn object(&self, objection: Objection, holds: bool) {
        let mut against = self.against.lock().unwrap_or_else(PoisonError::into_inner);
        if holds {
            against.insert(objection);
        } else {
            against.remove(&objection);
        }
        (self.apply)(against.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn a_node_stands_only_when_nothing_is_against_it() {
        let stands = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stands);
        let candidacy = Candidacy::new(move |may| seen.store(may, Ordering::SeqCst));
        let mut expected = BTreeSet::new();
        assert!(stands.load(Ordering::SeqCst));
        let steps = [
            (Objection::NoRoom, true),
            (Objection::EndLost, true),
            (Objection::EndLost, true),
            (Objection::NoRoom, false),
            (Objection::NoRoom, true),
            (Objection::EndLost, false),
            (Objection::NoRoom, false),
        ];
        for (objection, holds) in steps {
            candidacy.object(objection, holds);
            if holds {
                expected.insert(objection);
            } else {
                expected.remove(&objection);
            }
            let stands = stands.load(Ordering::SeqCst);
            assert_eq!(stands, expected.is_empty(), "{expected:?}");
        }
        assert!(expected.is_empty());
    }
}
