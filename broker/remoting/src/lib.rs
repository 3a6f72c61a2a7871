//! RocketMQ's remoting protocol, bytes to types and back. No I/O, no async, no clock.
//!
//! A frame on the wire, all integers big endian:
//!
//! ```text
//!  0        4              8
//!  +--------+----+---------+-----------------------------+-----------------+
//!  | total  |form| header  | header                      | body            |
//!  | length |    | length  | code, flag, opaque, remark, | meaning depends |
//!  | u32    | u8 | u24     | extFields: JSON or binary   | on the code     |
//!  +--------+----+---------+-----------------------------+-----------------+
//!            `-- total length counts from here --------------------------->
//! ```
//!
//! - [`frame`]: finds commands in a byte stream and writes them; [`RemotingCommand`] is one.
//! - [`code`]: the tables of request and response codes.
//! - [`message`]: the stored form of a message, which is also what a pull returns.
//! - [`properties`], [`tags`], [`sys_flag`], [`message_id`], [`batch`], [`name`]: parts of messages.
//! - [`body`]: JSON bodies of requests and responses.
//! - [`limits`]: every limit of the wire.
//!
//! Decoders take bytes from anyone: they never panic and never allocate more than the input
//! justifies.

pub mod batch;
pub mod body;
pub mod code;
pub mod command;
pub mod ext_fields;
pub mod frame;
mod header;
mod json;
pub mod limits;
pub mod message;
pub mod message_id;
#[cfg(test)]
mod message_tests;
pub mod name;
pub mod properties;
pub mod sys_flag;
pub mod tags;
#[cfg(test)]
mod tests;

pub use code::{LanguageCode, RequestCode, ResponseCode, version};
pub use command::{RemotingCommand, SerializeType};
pub use ext_fields::{ExtFields, HeaderError};
pub use frame::FrameError;
pub use header::HeaderDecodeError;
pub use json::JsonError;
