//! Configuration: parsed once, checked, then handed around as plain structs.
//!
//! `properties` reads the text, `keys` is the one table of every key, `broker` and `namesrv` own the
//! structs with their defaults and cross checks. Nothing outside this folder reads a configuration
//! file or an environment variable that stands for a key.

use std::fmt::{self, Display};
use std::path::PathBuf;

mod broker;
mod field;
#[doc(hidden)]
pub mod fuzzing;
mod keys;
mod namesrv;
mod peers;
mod properties;

pub use broker::{BrokerConfig, BrokerRole, FlushDiskType};
pub use namesrv::NamesrvConfig;
pub use peers::{GroupFormation, RaftConfig, RaftPeer};
pub use properties::{Entry, Properties};

/// Something about a configuration file that does not keep the process from starting: a key
/// without effect, a key given twice. Displays as `file:line: text`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// File name as given on the command line.
    pub file: String,
    /// Line of the key, from 1; 0 when it stands on the command line.
    pub line: usize,
    /// A sentence without a full stop.
    pub text: String,
}

impl Display for Warning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = properties::place(&self.file, self.line);
        write!(formatter, "{place}: {}", self.text)
    }
}

/// Why a configuration cannot be used: every problem that was found, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    /// `file:line: text`, or `file: text` when the problem concerns a key that is missing.
    pub problems: Vec<String>,
}

/// What the defaults of some keys are taken from; given to `parse`, so that tests are independent
/// of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// Home folder of the user; the base of `storePathRootDir` and `kvConfigPath`.
    pub home: PathBuf,
    /// Name of the machine; the default of `brokerName`.
    pub host_name: String,
    /// Address of the machine in its network; the default of `brokerIP1`.
    pub local_ip: String,
}

impl Surroundings {
    /// Asks the machine. Without a home folder the current folder stands in, without a route to
    /// other machines 127.0.0.1.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host_name = host_name.trim();
        let local_ip = raftmq_host::net::local_ipv4().map(|ip| ip.to_string());
        Self {
            home: home.map_or_else(|| PathBuf::from("."), PathBuf::from),
            host_name: if host_name.is_empty() {
                "localhost"
            } else {
                host_name
            }
            .to_owned(),
            local_ip: local_ip.unwrap_or_else(|| "127.0.0.1".to_owned()),
        }
    }
}

/// Where problems of one file are collected, so that a user sees all of them at once.
#[derive(Debug)]
struct Report<'a> {
    properties: &'a Properties,
    problems: Vec<String>,
    warnings: Vec<Warning>,
}

impl<'a> Report<'a> {
    fn new(properties: &'a Properties) -> Self {
        Self {
            properties,
            problems: Vec::new(),
            warnings: properties.warnings.clone(),
        }
    }

    /// Notes a problem with `key`, at its line when the file sets it.
    fn problem(&mut self, key: &str, text: impl Display) {
        let place = self.properties.place_of(key);
        let place = place.as_ref().unwrap_or(&self.properties.file);
        self.problems.push(format!("{place}: {text}"));
    }

    /// Notes a problem when `value` is outside `range`.
    fn check_range(&mut self, key: &str, value: u64, range: std::ops::RangeInclusive<u64>) {
        if !range.contains(&value) {
            let (low, high) = (range.start(), range.end());
            self.problem(
                key,
                format_args!("{key} must be {low} to {high}, not {value}"),
            );
        }
    }

    fn finish(self) -> Result<Vec<Warning>, ConfigError> {
        if self.problems.is_empty() {
            Ok(self.warnings)
        } else {
            Err(ConfigError {
                problems: self.problems,
            })
        }
    }
}

/// Sets every entry of `report.properties` in `config`, by the table of its kind.
fn apply<C>(config: &mut C, table: &keys::Table<C>, report: &mut Report<'_>) {
    let properties = report.properties;
    for Entry {
        key,
        value,
        file,
        line,
    } in &properties.entries
    {
        if let Some(row) = table.honoured(key) {
            if let Err(expected) = (row.field)(config).set(value) {
                report.problem(key, format_args!("{key} must be {expected}, not '{value}'"));
            }
        } else if let Some(why) = table.refusal(key, value) {
            report.problem(key, format_args!("{key}={value} cannot be served: {why}"));
        } else if let Some(why) = table.no_effect(key) {
            report.warnings.push(Warning {
                file: file.clone(),
                line: *line,
                text: format!("key '{key}' has no effect here: {why}"),
            });
        } else {
            let hint = table.nearest(key);
            let hint = hint
                .map(|name| format!(" (did you mean '{name}'?)"))
                .unwrap_or_default();
            report.problem(key, format_args!("unknown key '{key}'{hint}"));
        }
    }
}

/// Reads a configuration file as text.
fn read(path: &std::path::Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|error| ConfigError {
        problems: vec![format!("{}: read configuration: {error}", path.display())],
    })
}
