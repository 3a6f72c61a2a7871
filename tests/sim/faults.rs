//! What a simulated disk does wrong when it is told to: operations that fail, space that runs out,
//! writes that go elsewhere. Nothing here is random; who wants chance draws the rules by it.

use std::io;
use std::path::Path;

/// A kind of operation that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Opening, listing or reading.
    Read,
    /// Writing, cutting, or changing a name.
    Write,
    /// Making content or names durable.
    Sync,
}

/// Some operations fail, as a damaged device lets them.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Which kind.
    pub operation: Operation,
    /// Only at paths that contain this; every path contains an empty one.
    pub path: String,
    /// This many go well first.
    pub after: u64,
    /// This many fail then.
    pub times: u64,
}

impl Rule {
    /// The next operation of this kind fails, wherever it is.
    pub fn next(operation: Operation) -> Self {
        Self {
            operation,
            path: String::new(),
            after: 0,
            times: 1,
        }
    }
}

/// A write that reaches the disk at another place than it was meant for.
#[derive(Debug, Clone)]
struct Misdirection {
    path: String,
    offset: u64,
}

/// Everything that shall go wrong on one disk.
#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Vec<Rule>,
    misdirection: Option<Misdirection>,
    /// Syncs of paths that contain this do nothing and say that they did.
    pub(super) lies: Option<String>,
    /// Bytes that all files may take together.
    pub(super) quota_bytes: Option<u64>,
    failures: u64,
}

impl Faults {
    pub(super) fn add(&mut self, rule: Rule) {
        self.rules.push(rule);
    }

    pub(super) fn clear(&mut self) {
        *self = Self {
            failures: self.failures,
            ..Self::default()
        };
    }

    pub(super) fn misdirect(&mut self, path: &str, offset: u64) {
        let path = path.to_owned();
        self.misdirection = Some(Misdirection { path, offset });
    }

    /// Whether a sync only says that it is done.
    pub(super) fn lies_about(&self, path: &Path) -> bool {
        let lies = self.lies.as_ref();
        lies.is_some_and(|part| contains(path, part))
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Whether an operation goes well.
    pub(super) fn attempt(&mut self, operation: Operation, path: &Path) -> io::Result<()> {
        for rule in &mut self.rules {
            if rule.operation != operation || !contains(path, &rule.path) {
                continue;
            }
            if rule.after > 0 {
                rule.after -= 1;
            } else if rule.times > 0 {
                rule.times -= 1;
                self.failures += 1;
                // EIO has no kind of its own.
                return Err(io::Error::from_raw_os_error(5));
            }
        }
        Ok(())
    }

    /// Notes that a file could not grow.
    pub(super) fn out_of_space(&mut self) -> io::Error {
        self.failures += 1;
        io::ErrorKind::StorageFull.into()
    }

    /// Where a write for `offset` really goes.
    pub(super) fn place(&mut self, path: &Path, offset: u64) -> u64 {
        let is_meant = |other: &mut Misdirection| contains(path, &other.path);
        let other = self.misdirection.take_if(is_meant);
        other.map_or(offset, |other| other.offset)
    }
}

fn contains(path: &Path, part: &str) -> bool {
    part.is_empty() || path.to_string_lossy().contains(part)
}
