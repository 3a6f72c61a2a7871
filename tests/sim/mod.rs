//! Simulated parts of a machine, for tests that decide what fails and when, and what judges the
//! history that their clients write down.

pub mod disk;
pub mod faults;
pub mod history;
pub mod image;
pub mod oracle;
pub mod random;
