//! The `raftmq-operator` binary.

use std::process::ExitCode;

use clap::Parser as _;
use raftmq_operator::cli::{Cli, Command, LogFormat, RunArgs};
use raftmq_operator::{crd, run};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Crd => match crd::yaml() {
            Ok(yaml) => {
                print!("{yaml}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error),
        },
        Command::Run(arguments) => start(arguments),
    }
}

fn start(arguments: RunArgs) -> ExitCode {
    let filter = match EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {}: {error}", arguments.log)),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match arguments.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    // kube and tonic share one provider; it is fixed before anything connects.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        return fail(&"the cryptography provider is installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    match runtime.block_on(run::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("raftmq-operator: {error}");
    ExitCode::FAILURE
}
