//! Every decoder on changed inputs, with any toolchain. What must hold stands in `fuzz/`.
//!
//! Inputs are changes of valid ones, and of those that came further than others did. A seed decides
//! everything. `RAFTMQ_FUZZ_SECONDS` sets the time for each target (one second), `RAFTMQ_FUZZ_SEED`
//! the seed, `RAFTMQ_FUZZ_TARGET` chooses one target. Long runs want optimised code:
//!
//!     RAFTMQ_FUZZ_SECONDS=600 cargo test --release -p raftmq-tests --test fuzz -- --nocapture

#[path = "fuzz/counting.rs"]
mod counting;

use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use raftmq_tests::fuzz::{TARGETS, Target, corpus};
use raftmq_tests::sim::random::Random;

/// Executions between two looks at the clock.
const EXECUTIONS: u64 = 200;
/// Changes to one input at most.
const CHANGES_MAX: u64 = 6;
/// Inputs do not grow beyond this. Unit: bytes.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// Numbers that are often at the edge of something.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    u64::MAX,
];

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn no_input_breaks_a_decoder() {
    let seconds = Duration::from_secs(setting("RAFTMQ_FUZZ_SECONDS", 1));
    let seed = setting("RAFTMQ_FUZZ_SEED", 1);
    let chosen = std::env::var("RAFTMQ_FUZZ_TARGET").ok();
    let mut all = 0;
    for target in TARGETS {
        if chosen.as_ref().is_some_and(|name| name != target.name) {
            continue;
        }
        let (executions, took) = fuzz(target, seed, seconds);
        all += executions;
        let rate = executions as f64 / took.as_secs_f64();
        println!("{}: {executions} executions, {rate:.0}/s", target.name);
    }
    println!("{all} executions in all");
    assert!(all > 0, "there is no such target");
}

#[test]
fn every_target_has_valid_inputs_and_a_file_for_cargo_fuzz() {
    let folder = raftmq_tests::repository_root().join("tests/fuzz/fuzz_targets");
    for target in TARGETS {
        assert!(!corpus(target.name).is_empty(), "{}", target.name);
        let file = folder.join(format!("{}.rs", target.name));
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let call = format!("target(\"{}\")", target.name);
        assert!(text.contains(&call), "{} does not call it", file.display());
    }
}

/// Runs one target for some time; the number of executions and the time.
fn fuzz(target: Target, seed: u64, time: Duration) -> (u64, Duration) {
    let mut random = Random::new(seed);
    let inputs = corpus(target.name);
    for input in &inputs {
        execute(target, input);
    }
    let begin = Instant::now();
    let mut executions = 0;
    while begin.elapsed() < time {
        for _ in 0..EXECUTIONS {
            let input = change(&inputs, &mut random);
            execute(target, &input);
        }
        executions += EXECUTIONS;
    }
    (executions, begin.elapsed())
}

fn execute(target: Target, input: &[u8]) {
    let mut result = Ok(());
    let peak = counting::peak_of(|| {
        result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    });
    let hex = || -> String { input.iter().map(|byte| format!("{byte:02x}")).collect() };
    assert!(result.is_ok(), "{} breaks on {}", target.name, hex());
    let most = target.memory.most(input.len());
    assert!(
        peak <= most,
        "{} takes {peak} bytes for {}",
        target.name,
        hex()
    );
}

/// A changed copy of one of the inputs.
fn change(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| &inputs[random.below(inputs.len() as u64) as usize];
    let mut input = pick(random).clone();
    for _ in 0..=random.below(CHANGES_MAX) {
        let at = random.below(input.len() as u64 + 1) as usize;
        match random.below(8) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
            2 if at < input.len() => input[at] = random.number() as u8,
            3 => put_edge(&mut input, at, random),
            4 => input.truncate(at),
            5 => input.insert(at, random.number() as u8),
            6 if at < input.len() => {
                let to = at + 1 + random.below((input.len() - at).min(32) as u64) as usize;
                input.drain(at..to.min(input.len()));
            }
            _ => {
                let other = pick(random);
                let from = random.below(other.len() as u64 + 1) as usize;
                let to = (from + random.below(64) as usize).min(other.len());
                input.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Writes a number at the edge of something over what is there.
fn put_edge(input: &mut [u8], at: usize, random: &mut Random) {
    let edge = EDGES[random.below(EDGES.len() as u64) as usize];
    let width = 1 << random.below(4);
    let mut bytes = edge.to_le_bytes();
    if random.once_in(2) {
        bytes[..width].reverse();
    }
    let room = input.len() - at;
    let width = width.min(room);
    input[at..at + width].copy_from_slice(&bytes[..width]);
}
