//! The clients and the oracle of the simulation, at real brokers: `e2e/history.py` runs this while it
//! does something to them. Without brokers there is nothing to do.
//!
//! `RAFTMQ_HISTORY_BROKERS` names the brokers, `host:port` each, separated by commas;
//! `RAFTMQ_HISTORY_SECONDS` says for how long they are loaded. The history of a run that breaks a
//! promise is written to the file `RAFTMQ_HISTORY_FILE`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test program: whatever is not as expected ends it"
)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raftmq::net::{Net, TcpNet};
use raftmq_tests::sim::drain::{catch_up, drain};
use raftmq_tests::sim::oracle::judge;
use raftmq_tests::sim::workload::{Load, Workload};

/// How long clients may take to end what they are doing.
const CLIENTS_END: Duration = Duration::from_secs(8);
/// How often replicas are compared until they are equal, ten times a second.
const LOOKS: u32 = 300;

fn main() -> ExitCode {
    let Ok(brokers) = std::env::var("RAFTMQ_HISTORY_BROKERS") else {
        println!("test result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    };
    let brokers: Vec<String> = brokers.split(',').map(str::to_owned).collect();
    let seconds = std::env::var("RAFTMQ_HISTORY_SECONDS").unwrap();
    let time = Duration::from_secs(seconds.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (workload, problems) = runtime.block_on(load(brokers, time));
    let history = workload.history();
    println!(
        "{} operations, {} attempts to send",
        history.operations(),
        history.sends.len()
    );
    if problems.is_empty() {
        println!("PASS no promise to clients is broken");
        return ExitCode::SUCCESS;
    }
    for problem in problems.iter().take(20) {
        println!("  {problem}");
    }
    if let Ok(file) = std::env::var("RAFTMQ_HISTORY_FILE") {
        std::fs::write(&file, format!("{history:#?}")).unwrap();
        println!("the history is in {file}");
    }
    println!(
        "FAIL no promise to clients is broken: {} problems",
        problems.len()
    );
    ExitCode::FAILURE
}

/// Loads the brokers for some time, reads everything and judges it.
async fn load(brokers: Vec<String>, time: Duration) -> (Arc<Workload>, Vec<String>) {
    let net: Arc<dyn Net> = Arc::new(TcpNet);
    let load = Load {
        producers: 16,
        pullers: 4,
        pause_ms: 5,
        deletes: false,
        drops: false,
    };
    let workload = Workload::new(Arc::new(Mutex::new(brokers.clone())), load);
    workload.start(&net, u64::from(std::process::id()));
    tokio::time::sleep(time).await;
    workload.stop();
    tokio::time::sleep(CLIENTS_END).await;
    let queues = workload.queues() as u32;
    let mut problems = Vec::new();
    match catch_up(Arc::clone(&net), brokers.clone(), queues, LOOKS).await {
        None => problems.push("V2: replicas differ".to_owned()),
        Some(ends) => {
            for broker in &brokers {
                match drain(Arc::clone(&net), broker, &ends).await {
                    Ok(drain) => workload.history().drains.push(drain),
                    Err(problem) => problems.push(format!("V3: {broker}: {problem}")),
                }
            }
        }
    }
    problems.extend(judge(&workload.history()));
    if workload.history().operations() == 0 {
        problems.push("V1: nothing was done".to_owned());
    }
    (workload, problems)
}
