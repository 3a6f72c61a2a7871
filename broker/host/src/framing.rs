//! Frames of the remoting protocol on a connection: read and written with limits, paid for from a
//! budget, accepted with a bound.

pub mod frame_io;
pub mod intake;
