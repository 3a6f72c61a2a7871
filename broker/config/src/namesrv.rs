//! What a name server is configured with: RocketMQ's `namesrv.conf`, parsed and checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use raftmq_host::budget::{BUDGET_BYTES_MAX, BUDGET_BYTES_MIN};

use super::{ConfigError, Entry, Properties, Report, Surroundings, Warning, keys};

/// Everything `namesrv.conf` says, with RocketMQ 5.5.0's defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesrvConfig {
    /// `listenPort`.
    pub listen_port: u16,
    /// `bindAddress`.
    pub bind_address: IpAddr,
    /// `kvConfigPath`: where the key-value configuration is kept.
    pub kv_config_path: PathBuf,
    /// `scanNotActiveBrokerInterval`: time between searches for silent brokers. Unit: ms.
    pub scan_not_active_broker_interval_ms: u64,
    /// `orderMessageEnable`: routes tell the order configuration of their topic.
    pub order_message_enable: bool,
    /// `returnOrderTopicConfigToBroker`: a registration is answered with all order configurations.
    pub return_order_topic_config_to_broker: bool,
    /// `enableAllTopicList`: 206 is answered.
    pub enable_all_topic_list: bool,
    /// `enableTopicList`: the other topic lists are answered.
    pub enable_topic_list: bool,
    /// `deleteTopicWithBrokerRegistration`: a registration drops topics it no longer names.
    pub delete_topic_with_broker_registration: bool,
    /// `needWaitForService`: routes are refused for a while after the start, until brokers had
    /// time to register.
    pub need_wait_for_service: bool,
    /// `waitSecondsForService`. Unit: s.
    pub wait_seconds_for_service: u64,
    /// `serverChannelMaxIdleTimeSeconds`: silence after which a connection is closed. Unit: s.
    pub channel_max_idle_seconds: u64,
    /// `configBlackList`: keys that the admin protocol may not change.
    pub config_black_list: Vec<String>,
    /// `memoryBudgetBytes` (own key): memory that clients may hold together, as the broker's.
    /// Read at the start.
    pub memory_budget_bytes: Option<u64>,
}

impl NamesrvConfig {
    /// Reads and checks a file. The warnings are to be logged.
    pub fn load(path: &Path) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::parse(&super::read(path)?, &path.display().to_string())
    }

    /// Checks the text of a file called `file_name`; an empty text gives the defaults.
    pub fn parse(text: &str, file_name: &str) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::parse_in(text, file_name, &Surroundings::of_this_machine())
    }

    /// As [`Self::parse`], with defaults taken from `surroundings`.
    pub fn parse_in(
        text: &str,
        file_name: &str,
        surroundings: &Surroundings,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        Self::defaults(surroundings).changed(&Properties::parse(text, file_name)?)
    }

    /// RocketMQ's defaults; the key-value configuration is kept below the user's home.
    #[must_use]
    pub fn defaults(surroundings: &Surroundings) -> Self {
        Self {
            listen_port: 9_876,
            bind_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            kv_config_path: surroundings.home.join("namesrv").join("kvConfig.json"),
            scan_not_active_broker_interval_ms: 5_000,
            order_message_enable: false,
            return_order_topic_config_to_broker: true,
            enable_all_topic_list: true,
            enable_topic_list: true,
            delete_topic_with_broker_registration: false,
            need_wait_for_service: false,
            wait_seconds_for_service: 45,
            channel_max_idle_seconds: 120,
            config_black_list: ["configBlackList", "configStorePath", "kvConfigPath"]
                .map(str::to_owned)
                .to_vec(),
            memory_budget_bytes: None,
        }
    }

    /// This configuration with `properties` on top.
    pub fn changed(&self, properties: &Properties) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut report = Report::new(properties);
        let mut config = self.clone();
        super::apply(&mut config, &keys::NAMESRV, &mut report);
        report.check_range("listenPort", config.listen_port.into(), 1..=65_535);
        let scan = config.scan_not_active_broker_interval_ms;
        report.check_range("scanNotActiveBrokerInterval", scan, 100..=120_000);
        let idle = config.channel_max_idle_seconds;
        report.check_range("serverChannelMaxIdleTimeSeconds", idle, 1..=86_400);
        if let Some(bytes) = config.memory_budget_bytes {
            report.check_range(
                "memoryBudgetBytes",
                bytes,
                BUDGET_BYTES_MIN..=BUDGET_BYTES_MAX,
            );
        }
        report.check_range(
            "waitSecondsForService",
            config.wait_seconds_for_service,
            0..=3_600,
        );
        report.finish().map(|warnings| (config, warnings))
    }

    /// Whether the admin protocol may not change the key of `entry`.
    #[must_use]
    pub fn is_protected(&self, entry: &Entry) -> bool {
        self.config_black_list.contains(&entry.key)
    }

    /// The address to listen on.
    #[must_use]
    pub fn listen_address(&self) -> SocketAddr {
        SocketAddr::new(self.bind_address, self.listen_port)
    }

    /// Every key with its value as `key=value` lines; what `mqadmin getNamesrvConfig` shows.
    #[must_use]
    pub fn summary(&self) -> String {
        keys::text_of(&keys::NAMESRV.show(&mut self.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings() -> Surroundings {
        Surroundings {
            home: PathBuf::from("/home/u"),
            host_name: "machine".to_owned(),
            local_ip: "10.0.0.7".to_owned(),
        }
    }

    #[test]
    fn an_empty_file_gives_the_defaults_of_rocketmq() {
        let (config, warnings) = NamesrvConfig::parse_in("", "f", &surroundings()).unwrap();
        assert_eq!(config.listen_address().to_string(), "0.0.0.0:9876");
        assert_eq!(
            config.kv_config_path,
            PathBuf::from("/home/u/namesrv/kvConfig.json")
        );
        assert_eq!(warnings, []);
    }

    #[test]
    fn the_summary_reads_back_as_the_same_configuration() {
        let text = "listenPort=9999\norderMessageEnable=true\nbindAddress=::1\nconfigBlackList=";
        let (config, _) = NamesrvConfig::parse_in(text, "f", &surroundings()).unwrap();
        let (again, _) = NamesrvConfig::parse_in(&config.summary(), "f", &surroundings()).unwrap();
        assert_eq!(config, again);
    }

    #[test]
    fn keys_of_a_broker_are_unknown_to_a_name_server() {
        let error = NamesrvConfig::parse_in("\nbrokerName=a", "n.conf", &surroundings());
        assert_eq!(
            error.unwrap_err().to_string(),
            "n.conf:2: unknown key 'brokerName'"
        );
    }
}
