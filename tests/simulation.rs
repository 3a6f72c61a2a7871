//! Whole clusters in simulated time: `sim/trial.rs` tells what happens to each. A seed decides
//! everything; the first one runs twice and must go over the network in the same way.
//!
//! `RAFTMQ_SIM_SEEDS` sets the number of seeds, `RAFTMQ_SIM_SEED` the first one, `RAFTMQ_SIM_SECONDS`
//! for how long each has faults, in simulated time, `RAFTMQ_SIM_JOBS` how many run at a time. A long
//! run wants optimised code:
//!
//!     RAFTMQ_SIM_SEEDS=200 RAFTMQ_SIM_SECONDS=1800 cargo test --release -p raftmq-tests --test simulation
//!
//! Each seed has a process of its own, because libraries count globally, and gets its random numbers
//! from [`getrandom`] here. `RAFTMQ_SIM_LOG=raftmq=debug` writes what the brokers log.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{c_uint, c_void};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raftmq_tests::sim::classes::Classes;
use raftmq_tests::sim::random::Random;
use raftmq_tests::sim::trial::{Plan, Report, run};

/// The seed of a child process.
const CHILD: &str = "RAFTMQ_SIM_CHILD";

thread_local! {
    static CHANCE: Cell<u64> = const { Cell::new(0) };
}

/// Stands in for the C library's function, so that the hash keys of the standard library and what
/// tokio derives from them follow from the seed.
///
/// # Safety
/// `buffer` must be valid for writes of `length` bytes.
#[allow(unsafe_code, reason = "it takes the place of a C function")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    let mut random = Random::new(CHANCE.get());
    for at in 0..length {
        // SAFETY: the caller owns `length` bytes at `buffer`.
        unsafe { buffer.cast::<u8>().add(at).write(random.number() as u8) };
    }
    CHANCE.set(random.number());
    length as isize
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

fn main() -> ExitCode {
    let seconds = setting("RAFTMQ_SIM_SECONDS", 20);
    if let Ok(seed) = std::env::var(CHILD) {
        return live(seed.parse().unwrap(), seconds);
    }
    let first = setting("RAFTMQ_SIM_SEED", 1);
    let seeds = setting("RAFTMQ_SIM_SEEDS", 3);
    let jobs = setting("RAFTMQ_SIM_JOBS", 2);
    let begin = Instant::now();
    // The first one twice.
    let next = AtomicU64::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > seeds {
                        return;
                    }
                    let seed = first + number.saturating_sub(1);
                    let lines = child(seed);
                    results.lock().unwrap().insert(number, (seed, lines));
                }
            });
        }
    });
    let results = results.into_inner().unwrap();
    tell(&results, begin.elapsed())
}

/// Runs one seed in a process of its own; what it says of itself.
fn child(seed: u64) -> Vec<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CHILD, seed.to_string()).stdin(Stdio::null());
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if !output.status.success() && !lines.iter().any(|line| line.starts_with("problem ")) {
        lines.push(format!("problem it ended with {}", output.status));
    }
    lines
}

/// The child: runs the seed and writes the figures, one a line.
fn live(seed: u64, seconds: u64) -> ExitCode {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Tokio would take it for the end of one task.
        hook(info);
        println!("problem a panic: {info}");
        std::process::exit(101);
    }));
    if let Ok(filter) = std::env::var("RAFTMQ_SIM_LOG") {
        raftmq_tests::sim::log::start(&filter);
    }
    let begin = Instant::now();
    // On a thread of its own, whose hash keys nobody has drawn yet: logging changes nothing.
    let life = std::thread::spawn(move || {
        CHANCE.set(seed);
        run(Plan {
            seed,
            faults_ms: seconds * 1_000,
            classes: Classes::chosen(std::env::var("RAFTMQ_SIM_FAULTS").ok().as_deref()),
        })
    });
    let report = life.join().expect("a panic ends the process");
    write(&report, begin.elapsed());
    if report.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn write(report: &Report, took: Duration) {
    println!("simulated_ms {}", report.simulated_ms);
    println!("real_ms {}", took.as_millis());
    println!("operations {}", report.operations);
    println!("acknowledged {}", report.acknowledged);
    println!("segments {}", report.trace.1);
    println!("recovered_ms {}", report.recovered_ms);
    println!("membership_changes {}", report.membership_changes);
    println!("guards_ended {}", report.guards_ended);
    println!("trace {:016x}", report.trace.0);
    for (fault, times) in &report.faults {
        println!("fault {fault} {times}");
    }
    for (reason, times) in &report.ends {
        println!("end {times} {reason}");
    }
    for problem in report.problems.iter().take(20) {
        println!("problem {problem}");
    }
}

/// The number behind a name in what a child wrote.
fn value(lines: &[String], name: &str) -> u64 {
    let line = lines.iter().find_map(|line| line.strip_prefix(name));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Prints the figures of all and says what failed.
fn tell(results: &BTreeMap<u64, (u64, Vec<String>)>, took: Duration) -> ExitCode {
    let mut failed = 0;
    let mut sums = BTreeMap::new();
    for (seed, lines) in results.values() {
        let problem = |line: &&String| line.starts_with("problem ");
        let problems: Vec<&String> = lines.iter().filter(problem).collect();
        println!(
            "test seed {seed}: {} simulated s in {} ms, {} operations ... {}",
            value(lines, "simulated_ms ") / 1_000,
            value(lines, "real_ms "),
            value(lines, "operations "),
            if problems.is_empty() { "ok" } else { "FAILED" },
        );
        failed += u64::from(!problems.is_empty());
        for problem in problems {
            println!("  {problem}");
        }
        add(&mut sums, lines);
    }
    let trace = |number: u64| {
        let (_, lines) = results.get(&number)?;
        lines.iter().find(|line| line.starts_with("trace "))
    };
    let same = trace(0).is_some() && trace(0) == trace(1);
    let state = if same { "ok" } else { "FAILED" };
    println!("test an equal seed runs equally ... {state}");
    failed += u64::from(!same);
    for (name, sum) in &sums {
        println!("{name}: {sum}");
    }
    let simulated = Duration::from_millis(sums["simulated_ms"]);
    println!(
        "{:.2} simulated days in {:.0} s, {:.1} times as fast as real time",
        simulated.as_secs_f64() / 86_400.0,
        took.as_secs_f64(),
        simulated.as_secs_f64() / took.as_secs_f64(),
    );
    let passed = results.len() as u64 + 1 - failed;
    let state = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {state}. {passed} passed; {failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Adds the figures of one seed.
fn add(sums: &mut BTreeMap<String, u64>, lines: &[String]) {
    for name in [
        "simulated_ms",
        "real_ms",
        "operations",
        "acknowledged",
        "segments",
        "membership_changes",
        "guards_ended",
    ] {
        *sums.entry(name.to_owned()).or_default() += value(lines, &format!("{name} "));
    }
    let longest = sums.entry("longest recovery, ms".to_owned()).or_default();
    *longest = value(lines, "recovered_ms ").max(*longest);
    for line in lines {
        let Some((kind, rest)) = line.split_once(' ') else {
            continue;
        };
        let (times, name) = match kind {
            "fault" => rest.rsplit_once(' ').map_or(("0", rest), |(a, b)| (b, a)),
            "end" => rest.split_once(' ').unwrap_or(("0", rest)),
            _ => continue,
        };
        let name = match kind {
            "fault" => format!("fault {name}"),
            _ => format!("process ended: {}", without_path(name)),
        };
        *sums.entry(name).or_default() += times.parse().unwrap_or(0);
    }
}

/// A reason without the path in its middle, which differs each time.
fn without_path(reason: &str) -> String {
    match (reason.split_once('/'), reason.rsplit_once(": ")) {
        (Some((before, _)), Some((_, cause))) => format!("{before}*: {cause}"),
        _ => reason.to_owned(),
    }
}
