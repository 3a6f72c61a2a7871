//! What the tests of the whole project share. Each test program is a file of its own beside this
//! one, named in `Cargo.toml`.

use std::path::Path;

#[path = "fuzz/mod.rs"]
pub mod fuzz;
pub mod sim;

/// Top folder of the repository.
pub fn repository_root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}
