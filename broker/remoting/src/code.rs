//! Numbers of the protocol: request codes, response codes, languages, versions.
//!
//! Each list is one table; constants, names and everything else known about a number come from it.
//! A number that is in no table is legal here and answered with
//! [`ResponseCode::REQUEST_CODE_NOT_SUPPORTED`].

use std::fmt;

/// How much depends on a request code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Sent by ordinary clients.
    P0,
    /// Sent by `mqadmin`, the dashboard or the exporter.
    P1,
    /// Sent by brokers, controllers or rarely used tools.
    P2,
}

/// Which replica may answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Only the leader: it changes replicated state.
    Leader,
    /// Only a leader that a quorum confirms: it tells where a consumer goes on. A leader that was
    /// replaced without knowing it would send the consumer back.
    ConfirmedLeader,
    /// Any replica, also the name server and clients.
    Any,
}

/// Code of a request. Every int32 is a value; [`RequestCode::name`] tells whether it is known.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestCode(pub i32);

/// Code of a response. Every int32 is a value.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResponseCode(pub i32);

#[derive(Debug)]
struct RequestRow {
    code: RequestCode,
    name: &'static str,
    tier: Tier,
    serving: Serving,
}

/// Writes the constants and the table of request codes from one list, sorted by number.
macro_rules! request_codes {
    ($($name:ident = $number:literal, $tier:ident, $serving:ident;)*) => {
        impl RequestCode {
            $(
                #[doc = concat!("Request ", stringify!($number), ".")]
                pub const $name: Self = Self($number);
            )*
        }

        const REQUEST_ROWS: &[RequestRow] = &[$(RequestRow {
            code: RequestCode::$name,
            name: stringify!($name),
            tier: Tier::$tier,
            serving: Serving::$serving,
        }),*];
    };
}

/// Writes the constants and the names of response codes from one list, sorted by number.
macro_rules! response_codes {
    ($($name:ident = $number:literal;)*) => {
        impl ResponseCode {
            $(
                #[doc = concat!("Response ", stringify!($number), ".")]
                pub const $name: Self = Self($number);
            )*
        }

        const RESPONSE_ROWS: &[(ResponseCode, &str)] =
            &[$((ResponseCode::$name, stringify!($name))),*];
    };
}

request_codes! {
    SEND_MESSAGE = 10, P0, Leader;
    PULL_MESSAGE = 11, P0, Any;
    QUERY_MESSAGE = 12, P1, Any;
    QUERY_CONSUMER_OFFSET = 14, P0, ConfirmedLeader;
    UPDATE_CONSUMER_OFFSET = 15, P0, Leader;
    UPDATE_AND_CREATE_TOPIC = 17, P1, Leader;
    UPDATE_AND_CREATE_TOPIC_LIST = 18, P1, Leader;
    GET_ALL_TOPIC_CONFIG = 21, P1, Any;
    UPDATE_BROKER_CONFIG = 25, P1, Any;
    GET_BROKER_CONFIG = 26, P1, Any;
    GET_BROKER_RUNTIME_INFO = 28, P1, Any;
    SEARCH_OFFSET_BY_TIMESTAMP = 29, P0, ConfirmedLeader;
    GET_MAX_OFFSET = 30, P0, ConfirmedLeader;
    GET_MIN_OFFSET = 31, P0, Any;
    GET_EARLIEST_MSG_STORETIME = 32, P1, Any;
    VIEW_MESSAGE_BY_ID = 33, P1, Any;
    HEART_BEAT = 34, P0, Any;
    UNREGISTER_CLIENT = 35, P0, Any;
    CONSUMER_SEND_MSG_BACK = 36, P0, Leader;
    END_TRANSACTION = 37, P0, Leader;
    GET_CONSUMER_LIST_BY_GROUP = 38, P0, Any;
    CHECK_TRANSACTION_STATE = 39, P0, Any;
    NOTIFY_CONSUMER_IDS_CHANGED = 40, P0, Any;
    LOCK_BATCH_MQ = 41, P0, Leader;
    UNLOCK_BATCH_MQ = 42, P0, Leader;
    GET_ALL_CONSUMER_OFFSET = 43, P2, Any;
    GET_ALL_DELAY_OFFSET = 45, P2, Any;
    CHECK_CLIENT_CONFIG = 46, P0, Any;
    GET_TIMER_CHECK_POINT = 60, P2, Any;
    GET_TIMER_METRICS = 61, P2, Any;
    PUT_KV_CONFIG = 100, P1, Any;
    GET_KV_CONFIG = 101, P1, Any;
    DELETE_KV_CONFIG = 102, P1, Any;
    REGISTER_BROKER = 103, P2, Any;
    UNREGISTER_BROKER = 104, P2, Any;
    GET_ROUTEINFO_BY_TOPIC = 105, P0, Any;
    GET_BROKER_CLUSTER_INFO = 106, P0, Any;
    UPDATE_AND_CREATE_SUBSCRIPTIONGROUP = 200, P1, Leader;
    GET_ALL_SUBSCRIPTIONGROUP_CONFIG = 201, P1, Any;
    GET_TOPIC_STATS_INFO = 202, P1, Any;
    GET_CONSUMER_CONNECTION_LIST = 203, P1, Any;
    GET_PRODUCER_CONNECTION_LIST = 204, P1, Any;
    WIPE_WRITE_PERM_OF_BROKER = 205, P1, Any;
    GET_ALL_TOPIC_LIST_FROM_NAMESERVER = 206, P1, Any;
    DELETE_SUBSCRIPTIONGROUP = 207, P1, Leader;
    GET_CONSUME_STATS = 208, P1, Any;
    DELETE_TOPIC_IN_BROKER = 215, P1, Leader;
    DELETE_TOPIC_IN_NAMESRV = 216, P1, Any;
    REGISTER_TOPIC_IN_NAMESRV = 217, P2, Any;
    GET_KVLIST_BY_NAMESPACE = 219, P1, Any;
    RESET_CONSUMER_CLIENT_OFFSET = 220, P1, Any;
    GET_CONSUMER_STATUS_FROM_CLIENT = 221, P2, Any;
    INVOKE_BROKER_TO_RESET_OFFSET = 222, P1, Leader;
    INVOKE_BROKER_TO_GET_CONSUMER_STATUS = 223, P2, Any;
    GET_TOPICS_BY_CLUSTER = 224, P1, Any;
    UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST = 225, P1, Leader;
    QUERY_TOPIC_CONSUME_BY_WHO = 300, P1, Any;
    QUERY_CONSUME_TIME_SPAN = 303, P2, Any;
    GET_SYSTEM_TOPIC_LIST_FROM_NS = 304, P2, Any;
    GET_SYSTEM_TOPIC_LIST_FROM_BROKER = 305, P1, Any;
    CLEAN_EXPIRED_CONSUMEQUEUE = 306, P2, Any;
    GET_CONSUMER_RUNNING_INFO = 307, P1, Any;
    QUERY_CORRECTION_OFFSET = 308, P2, Any;
    CONSUME_MESSAGE_DIRECTLY = 309, P1, Any;
    SEND_MESSAGE_V2 = 310, P0, Leader;
    GET_UNIT_TOPIC_LIST = 311, P2, Any;
    GET_HAS_UNIT_SUB_TOPIC_LIST = 312, P2, Any;
    GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST = 313, P2, Any;
    CLONE_GROUP_OFFSET = 314, P2, Leader;
    VIEW_BROKER_STATS_DATA = 315, P1, Any;
    CLEAN_UNUSED_TOPIC = 316, P2, Any;
    GET_BROKER_CONSUME_STATS = 317, P1, Any;
    UPDATE_NAMESRV_CONFIG = 318, P1, Any;
    GET_NAMESRV_CONFIG = 319, P1, Any;
    SEND_BATCH_MESSAGE = 320, P0, Leader;
    QUERY_CONSUME_QUEUE = 321, P1, Any;
    QUERY_DATA_VERSION = 322, P2, Any;
    RESUME_CHECK_HALF_MESSAGE = 323, P2, Leader;
    SEND_REPLY_MESSAGE = 324, P0, Leader;
    SEND_REPLY_MESSAGE_V2 = 325, P0, Leader;
    PUSH_REPLY_MESSAGE_TO_CLIENT = 326, P0, Any;
    ADD_WRITE_PERM_OF_BROKER = 327, P1, Any;
    GET_ALL_PRODUCER_INFO = 328, P1, Any;
    DELETE_EXPIRED_COMMITLOG = 329, P2, Any;
    QUERY_TOPICS_BY_CONSUMER = 343, P2, Any;
    QUERY_SUBSCRIPTION_BY_CONSUMER = 345, P2, Any;
    GET_TOPIC_CONFIG = 351, P1, Any;
    GET_SUBSCRIPTIONGROUP_CONFIG = 352, P1, Any;
    UPDATE_AND_GET_GROUP_FORBIDDEN = 353, P2, Leader;
    CHECK_ROCKSDB_CQ_WRITE_PROGRESS = 354, P2, Any;
    EXPORT_ROCKSDB_CONFIG_TO_JSON = 355, P2, Any;
    LITE_PULL_MESSAGE = 361, P0, Any;
    RECALL_MESSAGE = 370, P1, Leader;
    QUERY_ASSIGNMENT = 400, P0, Any;
    SET_MESSAGE_REQUEST_MODE = 401, P1, Leader;
    GET_ALL_MESSAGE_REQUEST_MODE = 402, P2, Any;
    UPDATE_AND_CREATE_STATIC_TOPIC = 513, P2, Leader;
    GET_BROKER_MEMBER_GROUP = 901, P2, Any;
    ADD_BROKER = 902, P2, Any;
    REMOVE_BROKER = 903, P2, Any;
    BROKER_HEARTBEAT = 904, P2, Any;
    NOTIFY_MIN_BROKER_ID_CHANGE = 905, P2, Any;
    EXCHANGE_BROKER_HA_INFO = 906, P2, Any;
    GET_BROKER_HA_STATUS = 907, P1, Any;
    RESET_MASTER_FLUSH_OFFSET = 908, P2, Any;
    CONTROLLER_ALTER_SYNC_STATE_SET = 1001, P2, Any;
    CONTROLLER_ELECT_MASTER = 1002, P2, Any;
    CONTROLLER_REGISTER_BROKER = 1003, P2, Any;
    CONTROLLER_GET_REPLICA_INFO = 1004, P2, Any;
    CONTROLLER_GET_METADATA_INFO = 1005, P2, Any;
    CONTROLLER_GET_SYNC_STATE_DATA = 1006, P2, Any;
    GET_BROKER_EPOCH_CACHE = 1007, P2, Any;
    NOTIFY_BROKER_ROLE_CHANGED = 1008, P2, Any;
    UPDATE_CONTROLLER_CONFIG = 1009, P2, Any;
    GET_CONTROLLER_CONFIG = 1010, P2, Any;
    CLEAN_BROKER_DATA = 1011, P2, Any;
    CONTROLLER_GET_NEXT_BROKER_ID = 1012, P2, Any;
    CONTROLLER_APPLY_BROKER_ID = 1013, P2, Any;
    UPDATE_COLD_DATA_FLOW_CTR_CONFIG = 2001, P2, Any;
    REMOVE_COLD_DATA_FLOW_CTR_CONFIG = 2002, P2, Any;
    GET_COLD_DATA_FLOW_CTR_INFO = 2003, P2, Any;
    SET_COMMITLOG_READ_MODE = 2004, P2, Any;
    AUTH_CREATE_USER = 3001, P1, Leader;
    AUTH_UPDATE_USER = 3002, P1, Leader;
    AUTH_DELETE_USER = 3003, P1, Leader;
    AUTH_GET_USER = 3004, P1, Any;
    AUTH_LIST_USER = 3005, P1, Any;
    AUTH_CREATE_ACL = 3006, P1, Leader;
    AUTH_UPDATE_ACL = 3007, P1, Leader;
    AUTH_DELETE_ACL = 3008, P1, Leader;
    AUTH_GET_ACL = 3009, P1, Any;
    AUTH_LIST_ACL = 3010, P1, Any;
    SWITCH_TIMER_ENGINE = 5001, P2, Any;
    POP_MESSAGE = 200050, P0, Leader;
    ACK_MESSAGE = 200051, P0, Leader;
    PEEK_MESSAGE = 200052, P2, Any;
    CHANGE_MESSAGE_INVISIBLETIME = 200053, P0, Leader;
    NOTIFICATION = 200054, P2, Any;
    POLLING_INFO = 200055, P2, Any;
    POP_ROLLBACK = 200056, P2, Any;
    POP_LITE_MESSAGE = 200070, P2, Leader;
    LITE_SUBSCRIPTION_CTL = 200071, P2, Leader;
    ACK_LITE_MESSAGE = 200072, P2, Leader;
    NOTIFY_UNSUBSCRIBE_LITE = 200073, P2, Any;
    GET_BROKER_LITE_INFO = 200074, P2, Any;
    GET_PARENT_TOPIC_INFO = 200075, P2, Any;
    GET_LITE_TOPIC_INFO = 200076, P2, Any;
    GET_LITE_CLIENT_INFO = 200077, P2, Any;
    GET_LITE_GROUP_INFO = 200078, P2, Any;
    TRIGGER_LITE_DISPATCH = 200079, P2, Any;
    BATCH_ACK_MESSAGE = 200151, P0, Leader;
}

response_codes! {
    SUCCESS = 0;
    SYSTEM_ERROR = 1;
    SYSTEM_BUSY = 2;
    REQUEST_CODE_NOT_SUPPORTED = 3;
    TRANSACTION_FAILED = 4;
    FLUSH_DISK_TIMEOUT = 10;
    SLAVE_NOT_AVAILABLE = 11;
    FLUSH_SLAVE_TIMEOUT = 12;
    MESSAGE_ILLEGAL = 13;
    SERVICE_NOT_AVAILABLE = 14;
    VERSION_NOT_SUPPORTED = 15;
    NO_PERMISSION = 16;
    TOPIC_NOT_EXIST = 17;
    TOPIC_EXIST_ALREADY = 18;
    PULL_NOT_FOUND = 19;
    PULL_RETRY_IMMEDIATELY = 20;
    PULL_OFFSET_MOVED = 21;
    QUERY_NOT_FOUND = 22;
    SUBSCRIPTION_PARSE_FAILED = 23;
    SUBSCRIPTION_NOT_EXIST = 24;
    SUBSCRIPTION_NOT_LATEST = 25;
    SUBSCRIPTION_GROUP_NOT_EXIST = 26;
    FILTER_DATA_NOT_EXIST = 27;
    FILTER_DATA_NOT_LATEST = 28;
    INVALID_PARAMETER = 29;
    TRANSACTION_SHOULD_COMMIT = 200;
    TRANSACTION_SHOULD_ROLLBACK = 201;
    TRANSACTION_STATE_UNKNOW = 202;
    TRANSACTION_STATE_GROUP_WRONG = 203;
    NO_BUYER_ID = 204;
    NOT_IN_CURRENT_UNIT = 205;
    CONSUMER_NOT_ONLINE = 206;
    CONSUME_MSG_TIMEOUT = 207;
    NO_MESSAGE = 208;
    POLLING_FULL = 209;
    POLLING_TIMEOUT = 210;
    BROKER_NOT_EXIST = 211;
    BROKER_DISPATCH_NOT_COMPLETE = 212;
    BROADCAST_CONSUMPTION = 213;
    FLOW_CONTROL = 215;
    NOT_LEADER_FOR_QUEUE = 501;
    ILLEGAL_OPERATION = 604;
    GO_AWAY = 1500;
    FENCED_MASTER_EPOCH = 2000;
    FENCED_SYNC_STATE_SET_EPOCH = 2001;
    INVALID_MASTER = 2002;
    INVALID_REPLICAS = 2003;
    MASTER_NOT_AVAILABLE = 2004;
    INVALID_REQUEST = 2005;
    BROKER_NOT_ALIVE = 2006;
    NOT_LEADER = 2007;
    BROKER_METADATA_NOT_EXIST = 2008;
    INVALID_CLEAN_BROKER_METADATA = 2009;
    BROKER_NEED_TO_BE_REGISTERED = 2010;
    MASTER_STILL_EXIST = 2011;
    ELECT_MASTER_FAILED = 2012;
    ALTER_SYNC_STATE_SET_FAILED = 2013;
    BROKER_ID_INVALID = 2014;
    JRAFT_INTERNAL_ERROR = 2015;
    BROKER_LIVE_INFO_NOT_EXISTS = 2016;
    LMQ_QUOTA_EXCEEDED = 2017;
    LITE_SUBSCRIPTION_QUOTA_EXCEEDED = 2018;
    USER_NOT_EXIST = 3001;
    POLICY_NOT_EXIST = 3002;
}

impl RequestCode {
    fn row(self) -> Option<&'static RequestRow> {
        let at = REQUEST_ROWS
            .binary_search_by_key(&self, |row| row.code)
            .ok()?;
        REQUEST_ROWS.get(at)
    }

    /// RocketMQ's name of the code, `None` for an unknown one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|row| row.name)
    }

    /// Who sends it; `None` for an unknown code.
    #[must_use]
    pub fn tier(self) -> Option<Tier> {
        self.row().map(|row| row.tier)
    }

    /// Whether only the leader may answer it. Unknown codes need no leader to be refused.
    #[must_use]
    pub fn needs_leader(self) -> bool {
        self.row().is_some_and(|row| row.serving != Serving::Any)
    }

    /// Whether the leader may answer it only after a quorum has confirmed that it leads.
    #[must_use]
    pub fn needs_confirmed_leader(self) -> bool {
        self.row()
            .is_some_and(|row| row.serving == Serving::ConfirmedLeader)
    }

    /// All known codes in order of their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        REQUEST_ROWS.iter().map(|row| row.code)
    }
}

impl ResponseCode {
    /// RocketMQ's name of the code, `None` for an unknown one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let at = RESPONSE_ROWS
            .binary_search_by_key(&self, |row| row.0)
            .ok()?;
        RESPONSE_ROWS.get(at).map(|row| row.1)
    }
}

fn write_code(formatter: &mut fmt::Formatter<'_>, number: i32, name: Option<&str>) -> fmt::Result {
    match name {
        Some(name) => write!(formatter, "{number} {name}"),
        None => write!(formatter, "{number}"),
    }
}

impl fmt::Display for RequestCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_code(formatter, self.0, self.name())
    }
}

impl fmt::Debug for RequestCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_code(formatter, self.0, self.name())
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_code(formatter, self.0, self.name())
    }
}

impl fmt::Debug for ResponseCode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_code(formatter, self.0, self.name())
    }
}

impl From<RequestCode> for i32 {
    fn from(code: RequestCode) -> Self {
        code.0
    }
}

impl From<ResponseCode> for i32 {
    fn from(code: ResponseCode) -> Self {
        code.0
    }
}

/// Language of a peer. The JSON header carries its name, the binary header its number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LanguageCode(pub u8);

/// Names of the languages; the index is the number.
const LANGUAGES: [&str; 14] = [
    "JAVA", "CPP", "DOTNET", "PYTHON", "DELPHI", "ERLANG", "RUBY", "OTHER", "HTTP", "GO", "PHP",
    "OMS", "RUST", "NODE_JS",
];

impl LanguageCode {
    /// Java, also what an absent field means.
    pub const JAVA: Self = Self(0);
    /// C++.
    pub const CPP: Self = Self(1);
    /// .NET.
    pub const DOTNET: Self = Self(2);
    /// Python.
    pub const PYTHON: Self = Self(3);
    /// Anything without a number of its own.
    pub const OTHER: Self = Self(7);
    /// Go.
    pub const GO: Self = Self(9);
    /// Rust, this process.
    pub const RUST: Self = Self(12);
    /// Node.js.
    pub const NODE_JS: Self = Self(13);

    /// Name on the wire; a number without a name is `OTHER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        LANGUAGES
            .get(usize::from(self.0))
            .copied()
            .unwrap_or("OTHER")
    }

    /// The language called `name`; an unknown name is `OTHER`.
    #[must_use]
    pub fn from_name(name: &str) -> Self {
        let number = LANGUAGES.iter().position(|known| *known == name);
        number
            .and_then(|number| u8::try_from(number).ok())
            .map_or(Self::OTHER, Self)
    }
}

/// Version ordinals. Unit: position in RocketMQ's list of releases; newer is larger.
pub mod version {
    /// 3.0.7-SNAPSHOT: older clients cannot be asked to reset offsets (220).
    pub const V3_0_7_SNAPSHOT: i32 = 28;
    /// 3.1.8-SNAPSHOT: older clients cannot be asked for running info (307).
    pub const V3_1_8_SNAPSHOT: i32 = 62;
    /// 3.4.9: `maxReconsumeTimes` of request 36 counts from here on.
    pub const V3_4_9: i32 = 121;
    /// 4.9.3: the last with ACL signatures that leave `_UNIQUE_KEY_QUERY` out.
    pub const V4_9_3: i32 = 399;
    /// 4.9.4: the first that reads routes as standard JSON.
    pub const V4_9_4: i32 = 401;
    /// 4.9.8.
    pub const V4_9_8: i32 = 409;
    /// 5.0.0.
    pub const V5_0_0: i32 = 413;
    /// 5.3.0.
    pub const V5_3_0: i32 = 473;
    /// 5.3.1: newer clients understand `GO_AWAY`.
    pub const V5_3_1: i32 = 475;
    /// 5.5.0, what this project speaks.
    pub const V5_5_0: i32 = 513;
    /// What this project says it is.
    pub const CURRENT: i32 = V5_5_0;
    /// Name of [`CURRENT`], as tools show it.
    pub const CURRENT_NAME: &str = "V5_5_0";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_so_that_every_code_is_found() {
        assert!(REQUEST_ROWS.is_sorted_by_key(|row| row.code));
        assert!(RESPONSE_ROWS.is_sorted_by_key(|row| row.0));
        for code in RequestCode::all() {
            assert!(code.name().is_some() && code.tier().is_some());
        }
        assert_eq!(RequestCode(310).to_string(), "310 SEND_MESSAGE_V2");
        assert_eq!(RequestCode(13).name(), None);
        assert_eq!(ResponseCode(14).to_string(), "14 SERVICE_NOT_AVAILABLE");
    }

    #[test]
    fn writes_need_the_leader_and_pulls_do_not() {
        for code in [10, 15, 17, 36, 41, 310, 320, 200_050] {
            assert!(RequestCode(code).needs_leader(), "{code}");
        }
        for code in [11, 34, 38, 361, 13, -1] {
            assert!(!RequestCode(code).needs_leader(), "{code}");
        }
    }

    #[test]
    fn what_tells_a_consumer_where_to_go_on_needs_a_confirmed_leader() {
        let confirmed = RequestCode::all().filter(|code| code.needs_confirmed_leader());
        let confirmed: Vec<i32> = confirmed.map(|code| code.0).collect();
        assert_eq!(confirmed, [14, 29, 30]);
        for code in confirmed {
            assert!(RequestCode(code).needs_leader(), "{code}");
        }
        // A table that tools and RocketMQ's slaves copy; every replica answers with its own.
        assert!(!RequestCode(43).needs_leader());
    }

    #[test]
    fn languages_go_both_ways() {
        for number in 0..14 {
            let language = LanguageCode(number);
            assert_eq!(LanguageCode::from_name(language.name()), language);
        }
        assert_eq!(LanguageCode(200).name(), "OTHER");
        assert_eq!(LanguageCode::from_name("COBOL"), LanguageCode::OTHER);
    }
}
