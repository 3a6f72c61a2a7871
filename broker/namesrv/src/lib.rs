//! The name server role, and the broker's side of it.
//!
//! `route_table` and `kv_config` are values without I/O; `requests` parses a
//! request and `state` answers it over them; `server` owns the listener and the state. `registrar`
//! keeps a broker registered with name servers, ours or RocketMQ's: `announcement` is what they are
//! told, `link` the connection.

mod announcement;
#[doc(hidden)]
pub mod fuzzing;
mod kv_config;
mod link;
mod register_body;
mod registrar;
mod requests;
mod route_table;
mod server;
mod state;

#[cfg(test)]
mod server_test;

pub use announcement::{Announcement, RegisteredRole, RegistrarInput};
pub use announcement::{Announcements, ReadTopics};
pub use registrar::{NamesrvStatus, Registrar};
pub use route_table::LEADER_BROKER_ID;
pub use server::{NamesrvError, serve, serve_on};
