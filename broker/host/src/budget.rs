//! The memory that clients may hold in this process: one budget for all of it, whatever it is held
//! for.
//!
//! Each connection has an [`Account`]. What it holds up to its share, [`SHARE_BYTES`], is always
//! granted, so nobody can take everything from it. Beyond that it draws on a pool that all share,
//! under one rule: no account may draw more than what is then left for all. A lone greedy
//! connection so gets half of the pool, and with N of them one part of N + 1 is left to whoever
//! comes next.
//!
//! Whatever is held is a [`Permit`], given back when it is dropped. Owns numbers only: what a
//! request costs is said by `server/intake.rs`, what an answer costs by those who make it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus::{IntGauge, IntGaugeVec, Opts};
use raftmq_remoting::frame::FRAME_BYTES_MAX;
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, timeout_at},
};

use crate::process::memory_bytes;

/// What every connection may hold whatever the others do. Unit: bytes. Some requests of a few KiB,
/// or one answer of an ordinary pull; 10,000 connections together have 320 MiB.
pub const SHARE_BYTES: usize = 32 << 10;

/// Smallest and largest budget that may be configured. The largest frame, which is charged twice,
/// must fit into half of it. Unit: bytes.
pub const BUDGET_BYTES_MIN: u64 = 64 << 20;
/// See [`BUDGET_BYTES_MIN`]; beyond any machine.
pub const BUDGET_BYTES_MAX: u64 = 1 << 40;

/// Largest budget that is taken unless one is configured: 2,000 requests of 256 KiB, far more than
/// is ever under way while clients read. The rest of the memory serves the page cache.
const DEFAULT_BUDGET_BYTES_MAX: u64 = 1 << 30;
/// Part of the machine's memory that is taken unless a budget is configured: beside it stand the
/// tail of the log, the consume queue, connections, and what the allocator keeps.
const DEFAULT_BUDGET_PART: u64 = 4;

/// Bytes of answers that one connection may have unwritten; a single answer may be larger. Eight
/// full pulls: the network is never idle for want of more, and many slow readers cost little.
pub const UNSENT_BYTES_MAX: usize = 2 << 20;

/// How long a request waits for memory before it is refused: RocketMQ clients give up a send after
/// 3 s, and the refusal should reach them before, as it makes them try another broker.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

const _: () = assert!(BUDGET_BYTES_MIN as usize >= 2 * 2 * FRAME_BYTES_MAX);

/// The size of a process's budget. Unit: bytes.
#[must_use]
pub fn bytes_of(configured: Option<u64>) -> u64 {
    configured.unwrap_or_else(|| default_bytes(memory_bytes()))
}

/// The budget unless one is configured. `memory_bytes`: what the process may use.
fn default_bytes(memory_bytes: u64) -> u64 {
    (memory_bytes / DEFAULT_BUDGET_PART).clamp(BUDGET_BYTES_MIN, DEFAULT_BUDGET_BYTES_MAX)
}

/// What memory is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// Frames that have begun, and requests that are being handled.
    Received,
    /// Sends that wait in the proposer or for their outcome.
    Proposer,
    /// Requests that wait for a leader.
    Held,
    /// Pulls that wait for a message.
    Parked,
    /// Answers that are being made, and those that are not written yet.
    Answers,
}

impl Holder {
    const ALL: [Self; 5] = [
        Self::Received,
        Self::Proposer,
        Self::Held,
        Self::Parked,
        Self::Answers,
    ];

    /// Value of the label in metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Proposer => "proposer",
            Self::Held => "held",
            Self::Parked => "parked",
            Self::Answers => "answers",
        }
    }
}

/// Why there is no room for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// Too much is held, and nothing was given back in time.
    Busy,
    /// The connection is closed: nobody waits for it.
    Closed,
}

/// The budget of a process.
#[derive(Debug)]
pub struct Budget {
    bytes: usize,
    /// What all accounts hold beyond their shares. May pass the budget by answers that nobody could
    /// know the size of.
    drawn: AtomicUsize,
    waiting: Waiting,
    holders: [IntGauge; Holder::ALL.len()],
}

impl Budget {
    /// A budget that shows its size in `size`, and what is held in `held`, by the label `holder`.
    #[must_use]
    pub fn new(bytes: u64, size: &IntGauge, held: &IntGaugeVec) -> Arc<Self> {
        size.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        Arc::new(Self {
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
            drawn: AtomicUsize::new(0),
            waiting: Waiting::default(),
            holders: Holder::ALL.map(|holder| held.with_label_values(&[holder.name()])),
        })
    }

    /// A budget of a process that shows nothing of it.
    ///
    /// # Panics
    /// Never: the names of the gauges are valid.
    #[must_use]
    pub fn unseen(bytes: u64) -> Arc<Self> {
        let held = IntGaugeVec::new(Opts::new("held_bytes", "By holder."), &["holder"]);
        let size = IntGauge::new("budget_bytes", "Together.");
        Self::new(
            bytes,
            &size.expect("a valid name"),
            &held.expect("valid names"),
        )
    }

    /// An account of its own for a connection.
    pub fn account(self: &Arc<Self>) -> Arc<Account> {
        Arc::new(Account {
            budget: Arc::clone(self),
            held: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            turn: Mutex::new(()),
            waiting: Waiting::default(),
        })
    }

    /// Shows `bytes` that were received as held for `holder` until the guard is dropped.
    pub fn show(self: &Arc<Self>, holder: Holder, bytes: usize) -> Shown {
        self.moved(Holder::Received, holder, bytes);
        Shown {
            budget: Arc::clone(self),
            holder,
            bytes,
        }
    }

    fn moved(&self, from: Holder, to: Holder, bytes: usize) {
        self.gauge(from).sub(signed(bytes));
        self.gauge(to).add(signed(bytes));
    }

    fn gauge(&self, holder: Holder) -> &IntGauge {
        &self.holders[holder as usize]
    }

    /// Draws `bytes` if the account, which then has drawn `together`, may.
    fn try_draw(&self, bytes: usize, together: usize) -> bool {
        let draw = |drawn: usize| {
            let then = drawn.saturating_add(bytes);
            (together <= self.bytes.saturating_sub(then)).then_some(then)
        };
        self.drawn
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, draw)
            .is_ok()
    }
}

/// A gauge is signed; nothing in memory has 2^63 bytes.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// What an account that holds `held` bytes has drawn from the pool.
fn beyond_share(held: usize) -> usize {
    held.saturating_sub(SHARE_BYTES)
}

/// Tasks that wait until something is given back. Telling them costs a load while there are none.
#[derive(Debug, Default)]
struct Waiting {
    tasks: AtomicUsize,
    told: Notify,
}

impl Waiting {
    /// Tells all of them to look again. What they look at was written before, with SeqCst.
    fn tell(&self) {
        if self.tasks.load(Ordering::SeqCst) > 0 {
            self.told.notify_waiters();
        }
    }

    fn begin(&self) -> WaitingTask<'_> {
        self.tasks.fetch_add(1, Ordering::SeqCst);
        WaitingTask(self)
    }
}

/// Counts a task that waits until it is dropped.
struct WaitingTask<'a>(&'a Waiting);

impl Drop for WaitingTask<'_> {
    fn drop(&mut self) {
        self.0.tasks.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What one connection holds.
#[derive(Debug)]
pub struct Account {
    budget: Arc<Budget>,
    held: AtomicUsize,
    /// The part of it that is for answers.
    unsent: AtomicUsize,
    closed: AtomicBool,
    /// One answer at a time waits for room, in the order in which they asked: the others of a
    /// client that does not read need not be woken by each byte that it takes.
    turn: Mutex<()>,
    /// Tasks that wait for this connection.
    waiting: Waiting,
}

impl Account {
    /// Bytes that the connection holds.
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Bytes of it that are for answers.
    pub fn unsent_bytes(&self) -> usize {
        self.unsent.load(Ordering::SeqCst)
    }

    /// Nothing is waited for any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.waiting.tell();
        self.budget.waiting.tell();
    }

    /// Whether nothing is waited for any more.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Takes `bytes` if they may be held.
    pub fn try_take(self: &Arc<Self>, holder: Holder, bytes: usize) -> Option<Permit> {
        let before = self.held.fetch_add(bytes, Ordering::SeqCst);
        let (held, share) = (beyond_share(before + bytes), beyond_share(before));
        if held > share && !self.budget.try_draw(held - share, held) {
            // Others may have moved the bound between share and pool meanwhile.
            let now = self.held.fetch_sub(bytes, Ordering::SeqCst);
            let given_back = beyond_share(now) - beyond_share(now - bytes);
            let difference = (held - share).wrapping_sub(given_back);
            // Wraps around to a subtraction when more is given back.
            self.budget.drawn.fetch_add(difference, Ordering::SeqCst);
            return None;
        }
        Some(self.permit(holder, bytes))
    }

    /// Takes `bytes` that are held in any case.
    pub fn take(self: &Arc<Self>, holder: Holder, bytes: usize) -> Permit {
        self.charge(bytes);
        self.permit(holder, bytes)
    }

    fn charge(&self, bytes: usize) {
        let before = self.held.fetch_add(bytes, Ordering::SeqCst);
        let drawn = beyond_share(before + bytes) - beyond_share(before);
        if drawn > 0 {
            self.budget.drawn.fetch_add(drawn, Ordering::SeqCst);
        }
    }

    /// The permit for bytes that are charged.
    fn permit(self: &Arc<Self>, holder: Holder, bytes: usize) -> Permit {
        let mut permit = Permit {
            account: Arc::clone(self),
            holder,
            bytes: 0,
        };
        permit.count(bytes);
        permit
    }

    fn give_back(&self, bytes: usize) {
        let before = self.held.fetch_sub(bytes, Ordering::SeqCst);
        let drawn = beyond_share(before) - beyond_share(before - bytes);
        if drawn > 0 {
            self.budget.drawn.fetch_sub(drawn, Ordering::SeqCst);
            self.budget.waiting.tell();
        }
        self.waiting.tell();
    }

    /// Takes `bytes`; waits for them, though not for long.
    pub async fn wait_to_take(
        self: &Arc<Self>,
        holder: Holder,
        bytes: usize,
    ) -> Result<Permit, NoRoom> {
        self.take_until(holder, bytes, Instant::now() + ROOM_TIMEOUT)
            .await
    }

    async fn take_until(
        self: &Arc<Self>,
        holder: Holder,
        bytes: usize,
        deadline: Instant,
    ) -> Result<Permit, NoRoom> {
        if let Some(permit) = self.try_take(holder, bytes) {
            return Ok(permit);
        }
        let (_own, _all) = (self.waiting.begin(), self.budget.waiting.begin());
        let taken = async {
            loop {
                // Before the look: what is told between the two wakes it.
                let own = self.waiting.told.notified();
                let all = self.budget.waiting.told.notified();
                if self.is_closed() {
                    return Err(NoRoom::Closed);
                }
                if let Some(permit) = self.try_take(holder, bytes) {
                    return Ok(permit);
                }
                tokio::select! {
                    biased;
                    () = own => {}
                    () = all => {}
                }
            }
        };
        timeout_at(deadline, taken)
            .await
            .unwrap_or(Err(NoRoom::Busy))
    }

    /// Room for an answer of `bytes` bytes. Waits until the client has read what it has, which the
    /// writer of the connection bounds, then for the budget, though not for long.
    pub async fn room(self: &Arc<Self>, bytes: usize) -> Result<Permit, NoRoom> {
        let deadline = Instant::now() + ROOM_TIMEOUT;
        let _turn = self.turn.lock().await;
        let fits = || {
            let unsent = self.unsent_bytes();
            unsent == 0 || unsent + bytes <= UNSENT_BYTES_MAX
        };
        self.until(fits).await?;
        self.take_until(Holder::Answers, bytes, deadline).await
    }

    /// Waits until `is_met`, looking whenever the account has got something back.
    pub async fn until(&self, is_met: impl Fn() -> bool) -> Result<(), NoRoom> {
        if is_met() && !self.is_closed() {
            return Ok(());
        }
        let _waiting = self.waiting.begin();
        loop {
            // Before the look: what is told between the two wakes it.
            let told = self.waiting.told.notified();
            if self.is_closed() {
                return Err(NoRoom::Closed);
            }
            if is_met() {
                return Ok(());
            }
            told.await;
        }
    }
}

/// Bytes that a connection holds until this is dropped.
#[derive(Debug)]
pub struct Permit {
    account: Arc<Account>,
    holder: Holder,
    bytes: usize,
}

impl Permit {
    /// Holds `bytes` more in any case.
    pub fn grow(&mut self, bytes: usize) {
        self.account.charge(bytes);
        self.count(bytes);
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes == 0 {
            return;
        }
        if self.holder == Holder::Answers {
            self.account.unsent.fetch_sub(bytes, Ordering::SeqCst);
        }
        self.account.budget.gauge(self.holder).sub(signed(bytes));
        self.account.give_back(bytes);
    }

    /// Is held for something else from now on; not for answers, which are counted apart.
    pub fn becomes(&mut self, holder: Holder) {
        debug_assert!(self.holder != Holder::Answers && holder != Holder::Answers);
        self.account.budget.moved(self.holder, holder, self.bytes);
        self.holder = holder;
    }

    /// Counts bytes that are charged.
    fn count(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.account.budget.gauge(self.holder).add(signed(bytes));
        if self.holder == Holder::Answers {
            self.account.unsent.fetch_add(bytes, Ordering::SeqCst);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Shows bytes under another name until this is dropped; see [`Budget::show`].
#[derive(Debug)]
pub struct Shown {
    budget: Arc<Budget>,
    holder: Holder,
    bytes: usize,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.budget.moved(self.holder, Holder::Received, self.bytes);
    }
}

#[cfg(test)]
#[path = "budget_test.rs"]
mod tests;
