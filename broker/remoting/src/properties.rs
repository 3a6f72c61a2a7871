//! Properties of a message: ordered pairs of names and values, encoded as
//! `name 0x01 value 0x02 name 0x01 value 0x02 ...`, and the names RocketMQ gives a meaning to.
//!
//! A message has about five of them, so they stay in their encoded form: parsing is one copy,
//! encoding is none, and a look-up scans some hundred bytes.

use std::fmt;

/// Ends a name.
pub const NAME_VALUE_SEPARATOR: char = '\u{1}';
/// Ends a value.
pub const PROPERTY_SEPARATOR: char = '\u{2}';

macro_rules! property_names {
    ($($name:ident = $text:literal, $meaning:literal;)*) => {
        $(
            #[doc = $meaning]
            pub const $name: &str = $text;
        )*
    };
}

property_names! {
    PROPERTY_KEYS = "KEYS", "Keys for queries, separated by spaces.";
    PROPERTY_TAGS = "TAGS", "The tag.";
    PROPERTY_WAIT_STORE_MSG_OK = "WAIT", "Whether the producer waits for replication.";
    PROPERTY_UNIQ_KEY = "UNIQ_KEY", "Message id made by the client.";
    PROPERTY_DELAY_TIME_LEVEL = "DELAY", "Delay level, from 1.";
    PROPERTY_TIMER_DELAY_SEC = "TIMER_DELAY_SEC", "Delay. Unit: s.";
    PROPERTY_TIMER_DELAY_MS = "TIMER_DELAY_MS", "Delay. Unit: ms.";
    PROPERTY_TIMER_DELIVER_MS = "TIMER_DELIVER_MS", "Time of delivery. Unit: ms since 1970.";
    PROPERTY_TIMER_OUT_MS = "TIMER_OUT_MS", "Time of delivery as the broker computed it. Unit: ms.";
    PROPERTY_TIMER_ENQUEUE_MS = "TIMER_ENQUEUE_MS", "Time the timer took the message in. Unit: ms.";
    PROPERTY_TIMER_DEQUEUE_MS = "TIMER_DEQUEUE_MS", "Time the timer let the message go. Unit: ms.";
    PROPERTY_TIMER_ROLL_TIMES = "TIMER_ROLL_TIMES", "How often the timer rolled the message.";
    PROPERTY_TIMER_ROLL_LABEL = "TIMER_ROLL_LABEL", "Mark of a rolled timer message.";
    PROPERTY_TIMER_DELAY_LEVEL = "TIMER_DELAY_LEVEL", "Delay level kept by the timer.";
    PROPERTY_TIMER_DEL_UNIQKEY = "TIMER_DEL_UNIQKEY", "Unique key of a timer message to delete.";
    PROPERTY_REAL_TOPIC = "REAL_TOPIC", "Topic of a message parked in a system topic.";
    PROPERTY_REAL_QUEUE_ID = "REAL_QID", "queueId of a message parked in a system topic.";
    PROPERTY_RETRY_TOPIC = "RETRY_TOPIC", "Topic a retried message was first sent to.";
    PROPERTY_ORIGIN_MESSAGE_ID = "ORIGIN_MESSAGE_ID", "First message id of a retried message.";
    PROPERTY_ORIGIN_GROUP = "ORIGIN_GROUP", "Group of a retried message.";
    PROPERTY_RECONSUME_TIME = "RECONSUME_TIME", "Retries so far, as sent by the client.";
    PROPERTY_MAX_RECONSUME_TIMES = "MAX_RECONSUME_TIMES", "Most retries, as sent by the client.";
    PROPERTY_DLQ_ORIGIN_TOPIC = "DLQ_ORIGIN_TOPIC", "Topic a dead letter came from.";
    PROPERTY_DLQ_ORIGIN_MESSAGE_ID = "DLQ_ORIGIN_MESSAGE_ID", "Message id a dead letter had.";
    PROPERTY_CONSUME_START_TIME = "CONSUME_START_TIME", "Set by consumers. Unit: ms since 1970.";
    PROPERTY_TRANSACTION_PREPARED = "TRAN_MSG", "`true` in a half message.";
    PROPERTY_PRODUCER_GROUP = "PGROUP", "Producer group of a half message.";
    PROPERTY_TRANSACTION_ID = "__transactionId__", "Id of a transaction.";
    PROPERTY_TRANSACTION_CHECK_TIMES = "TRANSACTION_CHECK_TIMES", "Checks of a half message so far.";
    PROPERTY_CHECK_IMMUNITY_TIME_IN_SECONDS = "CHECK_IMMUNITY_TIME_IN_SECONDS",
        "Time before the first check of a half message. Unit: s.";
    PROPERTY_TRANSACTION_PREPARED_QUEUE_OFFSET = "TRAN_PREPARED_QUEUE_OFFSET",
        "Queue offset of the half message this one repeats.";
    PROPERTY_TRANS_OFFSET = "TRANS_OFFSET", "Offset of a half message.";
    PROPERTY_CORRELATION_ID = "CORRELATION_ID", "Ties a reply to its request message.";
    PROPERTY_REPLY_TO_CLIENT = "REPLY_TO_CLIENT", "Client id that waits for the reply.";
    PROPERTY_TTL = "TTL", "Time a request message waits for its reply. Unit: ms.";
    PROPERTY_MESSAGE_TYPE = "MSG_TYPE", "`reply` for replies.";
    PROPERTY_PUSH_REPLY_TIME = "PUSH_REPLY_TIME", "Time the broker pushed a reply. Unit: ms.";
    PROPERTY_ARRIVE_TIME = "ARRIVE_TIME", "Time a reply reached the broker. Unit: ms.";
    PROPERTY_CLUSTER = "CLUSTER", "Cluster the message was stored in.";
    PROPERTY_SHARDING_KEY = "__SHARDINGKEY", "Group of messages that are in order.";
    PROPERTY_INNER_NUM = "INNER_NUM", "Messages in an inner batch.";
    PROPERTY_INNER_BASE = "INNER_BASE", "First queue offset of an inner batch.";
    PROPERTY_INNER_MULTI_DISPATCH = "INNER_MULTI_DISPATCH", "Light queues, separated by commas.";
    PROPERTY_INNER_MULTI_QUEUE_OFFSET = "INNER_MULTI_QUEUE_OFFSET", "Offsets in light queues.";
    PROPERTY_LITE_TOPIC = "__LITE_TOPIC", "Lite topic of the message.";
    PROPERTY_PRIORITY = "_SYS_MSG_PRIORITY_", "Priority of the message.";
    PROPERTY_POP_CK = "POP_CK", "Receipt of a popped message.";
    PROPERTY_POP_CK_OFFSET = "POP_CK_OFFSET", "Offset of the pop check point.";
    PROPERTY_FIRST_POP_TIME = "1ST_POP_TIME", "Time of the first pop. Unit: ms since 1970.";
    PROPERTY_TRACE_SWITCH = "TRACE_ON", "`false` switches tracing of the message off.";
    PROPERTY_MSG_REGION = "MSG_REGION", "Region of the broker.";
    PROPERTY_INSTANCE_ID = "INSTANCE_ID", "Instance namespace.";
    PROPERTY_EXTEND_UNIQ_INFO = "EXTEND_UNIQ_INFO", "More to the unique id.";
    PROPERTY_DUP_INFO = "DUP_INFO", "Counts of duplicates.";
    PROPERTY_BORN_HOST = "__BORNHOST", "Host of a proxied producer.";
    PROPERTY_BORN_TIMESTAMP = "BORN_TIMESTAMP", "Born time of a proxied message. Unit: ms.";
    PROPERTY_MIN_OFFSET = "MIN_OFFSET", "Set by clients on pulled messages.";
    PROPERTY_MAX_OFFSET = "MAX_OFFSET", "Set by clients on pulled messages.";
    PROPERTY_CRC32 = "__CRC32#", "CRC of the whole record.";
    PROPERTY_TRANSIENT_PREFIX = "__RMQ.TRANSIENT.", "Prefix of properties that are not stored.";
}

/// Ordered properties of one message. A name occurs once unless the sender repeated it, and then
/// the last one counts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// Encoded form; empty or ends with [`PROPERTY_SEPARATOR`], every piece has a name.
    text: String,
}

impl Properties {
    /// No properties.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads the encoded form. Pieces without a name are dropped, as in RocketMQ.
    #[must_use]
    pub fn parse(encoded: &str) -> Self {
        // A broker usually adds CLUSTER, a detour adds two more.
        let mut text = String::with_capacity(encoded.len() + 96);
        for piece in encoded.split(PROPERTY_SEPARATOR) {
            if piece.find(NAME_VALUE_SEPARATOR).is_some_and(|at| at > 0) {
                text.push_str(piece);
                text.push(PROPERTY_SEPARATOR);
            }
        }
        Self { text }
    }

    /// The encoded form.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        find_property(&self.text, name)
    }

    /// Sets `name`, which moves to the end. The two separators cannot be part of a name or value;
    /// each one there is replaced by a space.
    pub fn set(&mut self, name: &str, value: &str) {
        self.delete(name);
        push_clean(name, &mut self.text);
        self.text.push(NAME_VALUE_SEPARATOR);
        push_clean(value, &mut self.text);
        self.text.push(PROPERTY_SEPARATOR);
    }

    /// Takes `name` out and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<String> {
        let value = self.get(name).map(str::to_owned)?;
        self.delete(name);
        Some(value)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        iter_properties(&self.text)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// One pass, however often a sender repeated the name: what stays moves once.
    fn delete(&mut self, name: &str) {
        let is_there = |piece: &str| has_name(piece, name);
        let Some(first) = self.text.split(PROPERTY_SEPARATOR).position(is_there) else {
            return;
        };
        let mut kept = String::with_capacity(self.text.capacity());
        let pieces = self.text.split_inclusive(PROPERTY_SEPARATOR);
        for (at, piece) in pieces.enumerate() {
            if at < first || !is_there(piece) {
                kept.push_str(piece);
            }
        }
        self.text = kept;
    }
}

fn push_clean(text: &str, out: &mut String) {
    let separators = [NAME_VALUE_SEPARATOR, PROPERTY_SEPARATOR];
    for (at, piece) in text.split(separators).enumerate() {
        if at > 0 {
            out.push(' ');
        }
        out.push_str(piece);
    }
}

fn has_name(piece: &str, name: &str) -> bool {
    piece
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with(NAME_VALUE_SEPARATOR))
}

/// Names and values of encoded properties in order; pieces without a name are passed over.
pub fn iter_properties(encoded: &str) -> impl Iterator<Item = (&str, &str)> {
    encoded
        .split(PROPERTY_SEPARATOR)
        .filter_map(|piece| piece.split_once(NAME_VALUE_SEPARATOR))
        .filter(|(name, _)| !name.is_empty())
}

/// Value of `name` in encoded properties; the last one if it occurs again. For readers that need
/// one property of a stored record and nothing else.
#[must_use]
pub fn find_property<'a>(encoded: &'a str, name: &str) -> Option<&'a str> {
    let pieces = encoded.rsplit(PROPERTY_SEPARATOR);
    pieces
        .filter(|piece| has_name(piece, name))
        .map(|piece| &piece[name.len() + 1..])
        .next()
}

impl fmt::Debug for Properties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut all = Self::new();
        for (name, value) in pairs {
            all.set(name.as_ref(), value.as_ref());
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_come_back_in_order() {
        let pairs = [("KEYS", "k1 k2"), ("TAGS", "A"), ("empty", "")];
        let properties = Properties::from_iter(pairs);
        assert_eq!(
            properties.as_str(),
            "KEYS\u{1}k1 k2\u{2}TAGS\u{1}A\u{2}empty\u{1}\u{2}"
        );
        let parsed = Properties::parse(properties.as_str());
        assert_eq!(parsed.iter().collect::<Vec<_>>(), pairs);
        assert_eq!(parsed, properties);
    }

    #[test]
    fn missing_last_separator_and_nameless_pieces_are_tolerated() {
        let mut properties = Properties::parse("\u{2}junk\u{2}\u{1}v\u{2}a\u{1}1\u{2}a\u{1}2");
        assert_eq!(
            properties.iter().collect::<Vec<_>>(),
            [("a", "1"), ("a", "2")]
        );
        assert_eq!(properties.get("a"), Some("2"));
        assert_eq!(properties.get("junk"), None);
        assert_eq!(properties.remove("a").as_deref(), Some("2"));
        assert!(properties.is_empty());
        assert_eq!(properties.remove("a"), None);
    }

    #[test]
    fn names_are_compared_whole() {
        let mut properties =
            Properties::from_iter([("DELAYED", "x"), ("DELAY", "3"), ("LAY", "y")]);
        assert_eq!(properties.get("DELAY"), Some("3"));
        properties.set("DELAY", "4");
        assert_eq!(properties.get("LAY"), Some("y"));
        assert_eq!(properties.get("DELAYE"), None);
        assert_eq!(properties.iter().last(), Some(("DELAY", "4")));
    }

    #[test]
    fn a_name_repeated_half_a_million_times_is_taken_out_in_one_pass() {
        let text = "CLUSTER\u{1}\u{2}".repeat(500_000) + "KEYS\u{1}k\u{2}";
        let begin = std::time::Instant::now();
        let mut properties = Properties::parse(&text);
        properties.set("CLUSTER", "c");
        assert_eq!(properties.as_str(), "KEYS\u{1}k\u{2}CLUSTER\u{1}c\u{2}");
        // A pass is some milliseconds; moving the rest for each of them would be minutes.
        assert!(begin.elapsed().as_secs() < 5);
    }

    #[test]
    fn separators_in_values_cannot_forge_properties() {
        let mut properties = Properties::new();
        properties.set("a", "1\u{2}TAGS\u{1}B");
        assert_eq!(properties.get("TAGS"), None);
        assert_eq!(properties.get("a"), Some("1 TAGS B"));
    }
}
