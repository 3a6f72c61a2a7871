//! What a process takes from its machine, with the limits under which it does: network, wall clock,
//! memory, threads, random numbers and its own end. A simulation puts its own in place of all of them.

pub mod budget;
#[cfg(any(test, feature = "testing"))]
pub mod cancellation;
pub mod clock;
pub mod framing;
pub mod limits;
mod memory;
pub mod net;
pub mod process;
