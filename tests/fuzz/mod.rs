//! Decoders that read what others wrote, each as a function that must hold for any bytes: it does
//! not panic, takes no more memory than its input allows, and what it accepts means the same after
//! encoding it again. [`Memory`] says how much that is; the test program counts it.
//!
//! `fuzz.rs` runs them on any toolchain; `fuzz_targets/` hands them to cargo-fuzz.

mod bodies;
mod broker;
mod corpus;
mod examples;
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
    /// What it may take meanwhile.
    pub memory: Memory,
}

/// A bound for the memory that a decoder takes, by the length of its input.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// For each byte of the input.
    factor: usize,
    /// For any input. Unit: bytes.
    fixed: usize,
}

impl Memory {
    /// The most for an input of this length. Unit: bytes.
    pub fn most(self, length: usize) -> usize {
        self.fixed + self.factor * length
    }
}

/// Of most decoders. A byte can stand for an element of a list, and lists grow by doubling.
const PLAIN: Memory = Memory {
    factor: 64,
    fixed: 64 << 10,
};
/// A connection has a buffer of its own, and reads 1 MiB ahead for a frame that announces it.
const READ_AHEAD: Memory = Memory {
    factor: 64,
    fixed: 2 << 20,
};
/// zlib makes 1032 bytes of one at most, and needs memory itself.
const COMPRESSED: Memory = Memory {
    factor: 8 * 1032,
    fixed: 1 << 20,
};

/// Every target.
pub const TARGETS: [Target; 24] = [
    Target {
        name: "frame",
        run: remoting::frame,
        memory: PLAIN,
    },
    Target {
        name: "message_record",
        run: remoting::message_record,
        memory: PLAIN,
    },
    Target {
        name: "properties",
        run: remoting::properties,
        memory: PLAIN,
    },
    Target {
        name: "batch_body",
        run: remoting::batch_body,
        memory: PLAIN,
    },
    Target {
        name: "message_id",
        run: remoting::message_id,
        memory: PLAIN,
    },
    Target {
        name: "tag_expression",
        run: remoting::tag_expression,
        memory: PLAIN,
    },
    Target {
        name: "command",
        run: replicated::command,
        memory: PLAIN,
    },
    Target {
        name: "payload",
        run: replicated::payload,
        memory: PLAIN,
    },
    Target {
        name: "state_checkpoint",
        run: replicated::state_checkpoint,
        memory: PLAIN,
    },
    Target {
        name: "store_checkpoint",
        run: stored::checkpoint,
        memory: PLAIN,
    },
    Target {
        name: "log_position",
        run: stored::log_position,
        memory: PLAIN,
    },
    Target {
        name: "data_folder",
        run: stored::data_folder,
        memory: PLAIN,
    },
    Target {
        name: "json_body",
        run: bodies::json_body,
        memory: PLAIN,
    },
    Target {
        name: "checkpoint_sections",
        run: stored::checkpoint_sections,
        memory: PLAIN,
    },
    Target {
        name: "queue_index",
        run: stored::queue_index,
        memory: PLAIN,
    },
    Target {
        name: "raft_frame",
        run: broker::raft_frame,
        memory: PLAIN,
    },
    Target {
        name: "raft_connection",
        run: broker::raft_connection,
        memory: READ_AHEAD,
    },
    Target {
        name: "java_properties",
        run: broker::java_properties,
        memory: PLAIN,
    },
    Target {
        name: "raft_peers",
        run: broker::raft_peers,
        memory: PLAIN,
    },
    Target {
        name: "broker_config",
        run: broker::broker_config,
        memory: PLAIN,
    },
    Target {
        name: "namesrv_config",
        run: broker::namesrv_config,
        memory: PLAIN,
    },
    Target {
        name: "namesrv_requests",
        run: broker::namesrv_requests,
        memory: COMPRESSED,
    },
    Target {
        name: "register_body",
        run: broker::register_body,
        memory: COMPRESSED,
    },
    Target {
        name: "kv_config",
        run: broker::kv_config,
        memory: PLAIN,
    },
];

/// The target with a name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
