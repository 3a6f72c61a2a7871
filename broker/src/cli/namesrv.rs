//! `raftmq namesrv`: runs a name server until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::broker::ServerError;
use super::shutdown::shutdown_signal;
use crate::config::NamesrvConfig;

/// `raftmq namesrv`.
#[derive(Debug, Args)]
pub(crate) struct NamesrvArgs {
    /// Properties file, as RocketMQ's mqnamesrv takes it; without one the defaults hold.
    #[arg(
        short,
        long = "configFile",
        visible_alias = "config",
        value_name = "FILE"
    )]
    config: Option<PathBuf>,
    /// Print the configuration with its defaults and stop.
    #[arg(short, long = "printConfigItem")]
    print_config: bool,
}

pub(crate) async fn run(args: NamesrvArgs) -> Result<(), ServerError> {
    let (config, warnings) = match &args.config {
        Some(path) => NamesrvConfig::load(path)?,
        None => NamesrvConfig::parse("", "defaults")?,
    };
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if args.print_config {
        println!("{}", config.summary());
        return Ok(());
    }
    Ok(crate::run_namesrv(config, shutdown_signal()?).await?)
}
