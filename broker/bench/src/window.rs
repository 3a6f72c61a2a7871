//! The requests of one connection that wait for an answer: a fixed number of slots, so that the
//! load generator allocates nothing for a message. Pure: time comes in as a number.

/// First opaque in use. Every opaque has ten digits, so that the number can be overwritten in a
/// JSON header without moving a byte (see `template`).
pub(crate) const OPAQUE_FIRST: i32 = 1_000_000_000;

/// Opaques from [`OPAQUE_FIRST`] on; together they stay below `i32::MAX`.
const OPAQUE_COUNT: u32 = 1_000_000_000;

/// Most slots of a window; the reason is the time that a scan for timeouts takes.
pub(crate) const SLOTS_MAX: u32 = 65_536;

/// What is known of a request until its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// When the request was due, on the clock of the run. Unit: ns.
    pub started_ns: u64,
    /// When it was sent: a timeout counts from here. Unit: ns.
    pub sent_ns: u64,
    /// The caller's number for it (a message's sequence, a queue's place).
    pub tag: u64,
}

#[derive(Debug)]
struct Slot {
    /// Opaque counter of the next use: the slot's index plus a multiple of the slot count.
    next: u32,
    /// The opaque in flight and its request.
    waiting: Option<(i32, Waiting)>,
}

/// Slots for the requests in flight on one connection.
#[derive(Debug)]
pub(crate) struct Window {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Window {
    /// A window for `slots` requests, 1 to [`SLOTS_MAX`].
    pub(crate) fn new(slots: u32) -> Self {
        let slots = slots.clamp(1, SLOTS_MAX);
        let slot = |index| Slot {
            next: index,
            waiting: None,
        };
        Self {
            slots: (0..slots).map(slot).collect(),
            free: (0..slots).rev().collect(),
        }
    }

    /// Takes a slot and returns the opaque to send; `None` when every slot waits.
    pub(crate) fn take(&mut self, waiting: Waiting) -> Option<i32> {
        let index = self.free.pop()?;
        let step = self.step();
        let slot = &mut self.slots[index as usize];
        let opaque = OPAQUE_FIRST + i32::try_from(slot.next).expect("below OPAQUE_COUNT");
        slot.next += step;
        if slot.next >= OPAQUE_COUNT / step * step {
            slot.next = index;
        }
        slot.waiting = Some((opaque, waiting));
        Some(opaque)
    }

    /// The request that `opaque` answers. `None` for an answer that comes after the request was
    /// given up, or that nobody asked for.
    pub(crate) fn finish(&mut self, opaque: i32) -> Option<Waiting> {
        let counter = u32::try_from(opaque.checked_sub(OPAQUE_FIRST)?).ok()?;
        let index = counter % self.step();
        let slot = &mut self.slots[index as usize];
        let (expected, waiting) = slot.waiting?;
        if expected != opaque {
            return None;
        }
        slot.waiting = None;
        self.free.push(index);
        Some(waiting)
    }

    /// Gives up every request for which `given_up` holds and returns them.
    pub(crate) fn give_up(&mut self, given_up: impl Fn(&Waiting) -> bool) -> Vec<Waiting> {
        let mut all = Vec::new();
        for (index, slot) in (0u32..).zip(&mut self.slots) {
            if let Some((_, waiting)) = slot.waiting
                && given_up(&waiting)
            {
                slot.waiting = None;
                self.free.push(index);
                all.push(waiting);
            }
        }
        all
    }

    /// Whether no request waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    fn step(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("at most SLOTS_MAX")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(tag: u64) -> Waiting {
        Waiting {
            started_ns: tag * 5,
            sent_ns: tag * 10,
            tag,
        }
    }

    #[test]
    fn a_full_window_takes_no_more_until_an_answer_comes() {
        let mut window = Window::new(2);
        let first = window.take(waiting(1)).unwrap();
        let second = window.take(waiting(2)).unwrap();
        assert_eq!(window.take(waiting(3)), None);
        assert_eq!(window.finish(second), Some(waiting(2)));
        assert_eq!(window.finish(first), Some(waiting(1)));
        assert!(window.is_empty());
    }

    #[test]
    fn an_answer_counts_once_and_only_for_its_own_request() {
        let mut window = Window::new(1);
        let old = window.take(waiting(1)).unwrap();
        assert_eq!(window.give_up(|_| true), vec![waiting(1)]);
        let new = window.take(waiting(2)).unwrap();
        assert_eq!(window.finish(old), None);
        assert_eq!(window.finish(new), Some(waiting(2)));
        assert_eq!(window.finish(new), None);
    }

    #[test]
    fn foreign_opaques_are_ignored() {
        let mut window = Window::new(4);
        window.take(waiting(1)).unwrap();
        for opaque in [i32::MIN, -1, 0, 7, OPAQUE_FIRST - 1, i32::MAX] {
            assert_eq!(window.finish(opaque), None);
        }
    }

    #[test]
    fn only_old_requests_are_given_up() {
        let mut window = Window::new(3);
        for tag in 1..=3 {
            window.take(waiting(tag)).unwrap();
        }
        let old = window.give_up(|waiting| waiting.sent_ns <= 20);
        assert_eq!(old, vec![waiting(1), waiting(2)]);
        assert!(!window.is_empty());
    }

    #[test]
    fn opaques_have_ten_digits_even_after_they_wrap() {
        let mut window = Window::new(3);
        for slot in &mut window.slots {
            slot.next += OPAQUE_COUNT / 3 * 3 - 3;
        }
        for _ in 0..10 {
            let opaque = window.take(waiting(0)).unwrap();
            assert_eq!(opaque.to_string().len(), 10);
            assert!(window.finish(opaque).is_some());
        }
    }
}
