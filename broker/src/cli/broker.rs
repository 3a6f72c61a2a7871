//! `raftmq broker`: reads the properties file and runs the broker until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::shutdown::shutdown_signal;
use crate::RunError;
use crate::config::{BrokerConfig, ConfigError};

/// Environment variable with the name servers, as RocketMQ's brokers read it.
const NAMESRV_VARIABLE: &str = "NAMESRV_ADDR";

/// `raftmq broker`.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// Properties file, as RocketMQ's mqbroker takes it; of several, a later one wins key by key.
    #[arg(
        short,
        long = "configFile",
        visible_alias = "config",
        value_name = "FILE",
        required = true
    )]
    config: Vec<PathBuf>,
    /// One key of the configuration; wins over the files. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Name servers, separated by `;`; wins over namesrvAddr in the file.
    #[arg(
        short,
        long = "namesrvAddr",
        visible_alias = "namesrv",
        value_name = "HOST:PORT;..."
    )]
    namesrv: Option<String>,
    /// Print the configuration with its defaults and stop.
    #[arg(short, long = "printConfigItem")]
    print_config: bool,
}

/// Why a server command ended with an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("listen for signals: {0}")]
    Signal(#[from] std::io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
}

pub(crate) async fn run(args: BrokerArgs) -> Result<(), ServerError> {
    let (mut config, warnings) = BrokerConfig::load(&args.config, &args.set)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let variable = std::env::var(NAMESRV_VARIABLE).ok();
    config.namesrv_addrs = name_servers(args.namesrv, config.namesrv_addrs, variable);
    if args.print_config {
        println!("{}", config.summary());
        return Ok(());
    }
    Ok(crate::run_broker(config, shutdown_signal()?).await?)
}

/// The command line wins over the file, the file over the environment: RocketMQ's order.
fn name_servers(
    argument: Option<String>,
    file: Vec<String>,
    variable: Option<String>,
) -> Vec<String> {
    let list = |text: String| {
        let parts = text.split(';').map(str::trim);
        let parts = parts.filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    match argument.map(list) {
        Some(addresses) if !addresses.is_empty() => addresses,
        Some(_) | None if file.is_empty() => variable.map(list).unwrap_or_default(),
        Some(_) | None => file,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_come_from_the_command_line_then_the_file_then_the_environment() {
        let from = |argument: Option<&str>, file: &[&str], variable: Option<&str>| {
            let file = file.iter().map(|&address| address.to_owned()).collect();
            name_servers(
                argument.map(str::to_owned),
                file,
                variable.map(str::to_owned),
            )
            .join(",")
        };
        assert_eq!(from(Some("a:1; b:2;"), &["c:3"], Some("d:4")), "a:1,b:2");
        assert_eq!(from(None, &["c:3"], Some("d:4")), "c:3");
        assert_eq!(from(Some(" "), &["c:3"], None), "c:3");
        assert_eq!(from(None, &[], Some("d:4;e:5")), "d:4,e:5");
        assert_eq!(from(None, &[], None), "");
    }
}
