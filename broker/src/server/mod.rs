//! The broker's remoting port: connections in, requests to their handlers, answers out.

mod connection;
mod dispatch;
mod remoting;

pub use connection::{Connection, InFlight};
pub(crate) use dispatch::ForwardedRequests;
pub(crate) use remoting::serve;
