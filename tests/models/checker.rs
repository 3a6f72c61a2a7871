//! Visits every state that a model can come to, breadth first, so that the counterexample is a
//! shortest one.
//!
//! Our own, because nothing fitted: `stateright` 0.31 brings a web server and a third version of
//! `rand` with it, whether they are used or not, and TLC is not in Maven Central and would make the
//! tests of the broker need a JDK.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Most states of a model: some gigabytes.
const STATES_MAX: usize = 100_000_000;

/// Something that goes from state to state.
pub trait Model {
    /// All there is to know at one moment.
    type State: Clone + Hash;
    /// What happens between two of them.
    type Action: Copy + Debug;

    /// Where it begins.
    fn start(&self) -> Self::State;

    /// Tells `then` everything that can happen next, and what it leads to.
    fn next(&self, state: &Self::State, then: &mut dyn FnMut(Self::Action, Self::State));

    /// The same one, as far as is easy to tell, of states that differ only in which node is which.
    fn representative(&self, state: &Self::State) -> Self::State {
        state.clone()
    }

    /// What is promised of every state.
    const PROMISES: &'static [&'static str];

    /// Whether a state keeps a promise.
    fn keeps(&self, state: &Self::State, promise: &str) -> bool;
}

/// What came out.
#[derive(Debug)]
pub struct Explored {
    /// States that differ.
    pub states: usize,
    /// Most actions that a shortest way to a state has.
    pub depth: usize,
    /// The promise that does not hold, and how that comes about.
    pub broken: Option<(&'static str, Vec<String>)>,
}

/// A state that was met, without the state itself.
struct Met<A> {
    before: u32,
    action: Option<A>,
}

/// Two halves, so that among millions of states no two are taken for one.
fn fingerprint(state: &impl Hash) -> u128 {
    let mut hasher = DefaultHasher::new();
    state.hash(&mut hasher);
    let first = hasher.finish();
    hasher.write_u8(1);
    u128::from(first) << 64 | u128::from(hasher.finish())
}

/// Visits all states, or those up to the first that breaks one of these promises.
///
/// # Panics
/// When there are more than `states_max`: the bounds of the model are too wide to be an exhaustive
/// search.
pub fn explore<M: Model>(model: &M, promises: &[&'static str], states_max: usize) -> Explored {
    let start = model.start();
    let mut seen = HashSet::from([fingerprint(&model.representative(&start))]);
    let mut met = vec![Met {
        before: 0,
        action: None,
    }];
    let mut level = vec![(0_u32, start)];
    let mut depth = 0;
    loop {
        for (number, state) in &level {
            let broken = promises.iter().find(|promise| !model.keeps(state, promise));
            if let Some(promise) = broken {
                return Explored {
                    states: met.len(),
                    depth,
                    broken: Some((promise, way_to(&met, *number))),
                };
            }
        }
        let mut next_level = Vec::new();
        for (before, state) in &level {
            model.next(state, &mut |action, next| {
                if seen.insert(fingerprint(&model.representative(&next))) {
                    let number = u32::try_from(met.len()).expect("fewer than 4 billion states");
                    met.push(Met {
                        before: *before,
                        action: Some(action),
                    });
                    next_level.push((number, next));
                }
            });
            assert!(met.len() <= states_max, "more than {states_max} states");
        }
        if next_level.is_empty() {
            return Explored {
                states: met.len(),
                depth,
                broken: None,
            };
        }
        depth += 1;
        level = next_level;
    }
}

fn way_to<A: Debug>(met: &[Met<A>], number: u32) -> Vec<String> {
    let mut way = Vec::new();
    let mut at = &met[number as usize];
    while let Some(action) = &at.action {
        way.push(format!("{action:?}"));
        at = &met[at.before as usize];
    }
    way.reverse();
    way
}

/// The search of a model that keeps its promises.
pub fn holds<M: Model>(name: &str, model: &M) {
    keeps(name, model, M::PROMISES);
}

/// The search of a model that keeps some of its promises.
pub fn keeps<M: Model>(name: &str, model: &M, promises: &[&'static str]) {
    let explored = explore(model, promises, STATES_MAX);
    println!(
        "{name}: {} states, depth {}",
        explored.states, explored.depth
    );
    if let Some((promise, way)) = &explored.broken {
        panic!("{name}: {promise}\n  {}", way.join("\n  "));
    }
}

/// The search of a model with a defect that breaks a promise: it must be found, in so many actions at
/// most.
pub fn refuted<M: Model>(name: &str, model: &M, promise: &'static str, actions_max: usize) {
    let explored = explore(model, &[promise], STATES_MAX);
    let (_, way) = (explored.broken).unwrap_or_else(|| panic!("{name}: not found"));
    println!("{name}: {} states\n  {}", explored.states, way.join("\n  "));
    assert!(way.len() <= actions_max, "{name}: {} actions", way.len());
}
