//! What threads share: the standard library's. In the tests of `interleavings_tests.rs` they are
//! shuttle's, which decides at each use who goes on, so that many orders of one program are seen.

#[cfg(not(all(test, feature = "interleavings")))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};

#[cfg(all(test, feature = "interleavings"))]
pub(crate) use shuttle::sync::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic,
};
