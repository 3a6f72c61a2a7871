//! The command line of `raftmq`: what the commands are and what each one starts.

mod admin_client;

mod broker;
mod end_guard;
mod hand_over;
mod local;
mod namesrv;
mod shutdown;
mod status;

use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use self::broker::BrokerArgs;
use self::end_guard::EndGuardArgs;
use self::hand_over::HandOverArgs;
use self::local::LocalArgs;
use self::namesrv::NamesrvArgs;
use self::status::StatusArgs;
use raftmq_bench::BenchCommand;

/// Environment variable with the log filter, in the form of `tracing_subscriber::EnvFilter`.
const LOG_VARIABLE: &str = "RAFTMQ_LOG";

/// Level of our own log when [`LOG_VARIABLE`] is not set.
const LOG_DEFAULT: &str = "info";

/// A RocketMQ-compatible message broker whose Raft log is the commit log.
#[derive(Debug, Parser)]
#[command(name = "raftmq", version, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine: a name server and three brokers.
    Local(LocalArgs),
    /// Run one broker.
    Broker(BrokerArgs),
    /// Run one name server.
    Namesrv(NamesrvArgs),
    /// Make another broker of the group lead if this one does; for the stop of a machine or pod.
    HandOver(HandOverArgs),
    /// Show what a broker knows about its group.
    Status(StatusArgs),
    /// Let a broker vote that lost the end of its log; acknowledged messages may be lost by it.
    EndGuard(EndGuardArgs),
    /// Load a broker and measure it.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// Reads the arguments of the process and runs the command they name.
#[must_use]
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let mut builder = match &command {
        Command::Broker(_) | Command::Namesrv(_) => Builder::new_multi_thread(),
        Command::Local(_)
        | Command::Bench(_)
        | Command::HandOver(_)
        | Command::Status(_)
        | Command::EndGuard(_) => Builder::new_current_thread(),
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit(&Err(format!("start the runtime: {error}"))),
    };
    let result = match command {
        Command::Local(args) => text(runtime.block_on(local::run(args))),
        Command::Bench(command) => text(runtime.block_on(raftmq_bench::run(&command))),
        Command::HandOver(args) => text(runtime.block_on(hand_over::run(&args))),
        Command::EndGuard(args) => text(end_guard::run(&args)),
        Command::Status(args) => text(runtime.block_on(status::run(&args))),
        Command::Broker(args) => {
            start_log();
            text(runtime.block_on(broker::run(args)))
        }
        Command::Namesrv(args) => {
            start_log();
            text(runtime.block_on(namesrv::run(args)))
        }
    };
    // What still blocks a thread (a read of standard input) must not keep the process.
    runtime.shutdown_background();
    exit(&result)
}

fn text<E: Display>(result: Result<(), E>) -> Result<(), String> {
    result.map_err(|error| error.to_string())
}

fn exit(result: &Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("raftmq: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Logs to standard error, in colour only on a terminal.
fn start_log() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE);
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| {
            EnvFilter::new(format!("{LOG_DEFAULT},{}", crate::RAFT_LOG_FILTER))
        }))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        CommandLine::try_parse_from(line.split(' ')).map(|line| line.command)
    }

    #[test]
    fn the_definition_of_the_commands_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_documented_commands_are_accepted() {
        for line in [
            "raftmq local",
            "raftmq local --nodes 3 --data-dir /tmp/x",
            "raftmq local restart n2 --data-dir /tmp/x",
            "raftmq broker -c broker.conf",
            "raftmq broker -c broker.conf -c broker-0.conf --set brokerIP1=10.0.0.7 --set a=b",
            "raftmq broker -c broker.conf -n 127.0.0.1:9876;127.0.0.1:9877",
            "raftmq namesrv",
            "raftmq hand-over",
            "raftmq hand-over --address 127.0.0.1:5558 --timeout 500ms",
            "raftmq status --address 127.0.0.1:5558 --watch",
            "raftmq end-guard --accept-loss /x/store/commitlog",
            "raftmq namesrv -c namesrv.conf",
            "raftmq bench produce -n 127.0.0.1:9876 --connections 64 --size 1024 --seconds 5",
            "raftmq bench produce -b 127.0.0.1:1 -b 127.0.0.1:2 --rate 1000 --pid n1=12",
            "raftmq bench consume --broker 127.0.0.1:1 --group g --until-empty --format json",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line).err());
        }
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "raftmq broker",
            "raftmq bench produce",
            "raftmq bench produce -n 127.0.0.1:1 -b 127.0.0.1:2",
            "raftmq bench produce -b 127.0.0.1:1 --rate 0",
            "raftmq bench consume -b 127.0.0.1:1 --pid me",
            "raftmq local --nodes 0",
            "raftmq end-guard /x/store/commitlog",
            "raftmq hand-over --timeout 10",
            "raftmq broker -c broker.conf --set",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
