//! What clients did and saw, in the order in which it happened.

use std::collections::BTreeMap;

/// Place of an event in the order of all events of a simulation.
pub type Moment = u64;

/// What a message is told from others by. Every message has its own; attempts of one message share
/// it.
pub type MessageId = u64;

/// How an attempt to change something ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    /// It was done.
    Done(T),
    /// It was certainly not done.
    Refused,
    /// It may have been done, or may be done later.
    Unknown,
}

/// One attempt to send a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Send {
    /// The message.
    pub id: MessageId,
    /// Queue it was meant for.
    pub queue: u32,
    /// When it left, and when its end was known.
    pub span: (Moment, Moment),
    /// Its queue offset, when it was stored.
    pub outcome: Outcome<u64>,
}

/// One answer to a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pull {
    /// Queue.
    pub queue: u32,
    /// Queue offset asked for.
    pub from: u64,
    /// Queue offsets and ids of what came.
    pub messages: Vec<(u64, MessageId)>,
}

/// One answer of the leader to the question where a queue ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Queue.
    pub queue: u32,
    /// When it was asked, and when the answer came.
    pub span: (Moment, Moment),
    /// Offset behind the last message.
    pub end: u64,
}

/// One thing done to the committed offset of a group in a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetStep {
    /// Group and queue.
    pub place: (u32, u32),
    /// Begin and end.
    pub span: (Moment, Moment),
    /// What it was.
    pub kind: OffsetKind,
}

/// See [`OffsetStep`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetKind {
    /// This offset was to be committed.
    Commit(u64, Outcome<()>),
    /// This offset was read; `None` = none was ever committed.
    Read(Option<u64>),
}

/// What one replica holds of every queue at the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drain {
    /// Ids by queue, from the first offset that it has.
    pub queues: BTreeMap<u32, (u64, Vec<MessageId>)>,
}

/// Everything that clients did and saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    now: Moment,
    /// Old messages may be deleted: queues then begin later, on each replica as it comes.
    pub deletes: bool,
    /// Attempts to send, in the order of their ends.
    pub sends: Vec<Send>,
    /// Pulls.
    pub pulls: Vec<Pull>,
    /// Pulls that were told to go on elsewhere: queue, offset asked for, offset told.
    pub moves: Vec<(u32, u64, u64)>,
    /// Ends of queues, as the leader told them.
    pub ends: Vec<End>,
    /// Offsets of groups.
    pub offsets: Vec<OffsetStep>,
    /// What each replica held at the end.
    pub drains: Vec<Drain>,
}

impl History {
    /// The next moment.
    pub fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }

    /// Operations in it.
    pub fn operations(&self) -> usize {
        self.sends.len() + self.pulls.len() + self.ends.len() + self.offsets.len()
    }
}
