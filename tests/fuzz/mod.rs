//! Decoders that read what others wrote, each as a function that must hold for any bytes: it does
//! not panic, takes no more memory than its input allows, and what it accepts means the same after
//! encoding it again.
//!
//! `fuzz.rs` runs them on any toolchain; `fuzz_targets/` hands them to cargo-fuzz.

mod corpus;
mod remoting;
mod replicated;
mod stored;

pub use corpus::corpus;

/// A decoder and what must hold of it.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name, also of its file in `fuzz_targets/`.
    pub name: &'static str,
    /// Panics when it does not hold.
    pub run: fn(&[u8]),
}

/// Every target.
pub const TARGETS: [Target; 12] = [
    Target {
        name: "frame",
        run: remoting::frame,
    },
    Target {
        name: "message_record",
        run: remoting::message_record,
    },
    Target {
        name: "properties",
        run: remoting::properties,
    },
    Target {
        name: "batch_body",
        run: remoting::batch_body,
    },
    Target {
        name: "message_id",
        run: remoting::message_id,
    },
    Target {
        name: "tag_expression",
        run: remoting::tag_expression,
    },
    Target {
        name: "command",
        run: replicated::command,
    },
    Target {
        name: "payload",
        run: replicated::payload,
    },
    Target {
        name: "state_checkpoint",
        run: replicated::state_checkpoint,
    },
    Target {
        name: "store_checkpoint",
        run: stored::checkpoint,
    },
    Target {
        name: "log_position",
        run: stored::log_position,
    },
    Target {
        name: "data_folder",
        run: stored::data_folder,
    },
];

/// The target with a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
