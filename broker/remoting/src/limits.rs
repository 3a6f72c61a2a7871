//! Limits of the wire, each with its unit and source. Owns numbers only; who enforces a limit says
//! so at the place of the check.

/// Longest frame, length field included. Unit: bytes. Source: RocketMQ `frameMaxLength` default.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest frame header. Unit: bytes. The wire allows 16 MiB; a header carries at most the 32 KiB
/// of message properties, each byte escaped to six, and lists of names in a few admin requests.
pub const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// Most extFields in one header. RocketMQ's largest header has about twenty; hooks add a few.
pub const EXT_FIELDS_MAX: usize = 1024;

/// Deepest nesting of JSON that is read. RocketMQ's deepest body has six levels.
pub const JSON_DEPTH_MAX: usize = 64;

/// Longest message body by default. Unit: bytes. Source: RocketMQ `maxMessageSize`.
pub const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Longest encoded properties of a message. Unit: bytes. Source: the field is an int16.
pub const PROPERTIES_BYTES_MAX: usize = i16::MAX as usize;

/// Longest stored record that is read or written: the frame that brings a message bounds it.
/// Unit: bytes.
pub const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX;

/// Longest topic name a client may use. Unit: bytes. Source: RocketMQ `Validators`.
pub const TOPIC_BYTES_MAX: usize = 127;

/// Longest name of a retry or dead-letter topic. Unit: bytes. Source: RocketMQ
/// `RETRY_OR_DLQ_TOPIC_MAX_LENGTH`.
pub const RETRY_TOPIC_BYTES_MAX: usize = 255;

/// Longest group name. Unit: bytes. Source: RocketMQ 5.3.4; retry topics of it stay in bounds.
pub const GROUP_BYTES_MAX: usize = 120;

/// Most messages in one pull or pop response. Source: RocketMQ
/// `maxTransferCountOnMessageInMemory`, pop refuses more than 32.
pub const PULL_MESSAGES_MAX: usize = 32;

/// Most messages taken from one batch body. Each item has at least 22 bytes, so a batch of
/// [`BODY_BYTES_MAX`] could name 190 000; no client packs that many.
pub const BATCH_MESSAGES_MAX: usize = 65_536;

const _: () = assert!(BODY_BYTES_MAX + PROPERTIES_BYTES_MAX + HEADER_BYTES_MAX < FRAME_BYTES_MAX);
const _: () = assert!(RETRY_TOPIC_BYTES_MAX > GROUP_BYTES_MAX + TOPIC_BYTES_MAX);
