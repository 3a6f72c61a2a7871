//! Simulated parts of a machine, for tests that decide what fails and when.

pub mod disk;
pub mod image;
pub mod random;
