//! The broker's remoting port: connections in, requests to their handlers, answers out.

mod connection;
mod dispatch;
pub(crate) mod frame_io;
pub(crate) mod intake;
mod remoting;

pub use connection::{Connection, InFlight};
pub(crate) use dispatch::ForwardedRequests;
pub(crate) use intake::REQUEST_COST_BYTES;
pub(crate) use remoting::serve;
