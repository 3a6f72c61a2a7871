//! Whether new batches go to Raft. They are held back while the leadership moves, so that the node
//! that takes over can have the whole log, and no send fails.

use tokio::sync::watch;

/// Lets batches through, or not. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct IntakeGate(watch::Sender<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Who holds batches back.
    holds: usize,
    /// Batches on their way to Raft.
    passing: usize,
}

/// Holds new batches back until it is dropped.
#[derive(Debug)]
pub struct Hold(IntakeGate);

/// A batch on its way to Raft, until it is dropped.
#[derive(Debug)]
pub struct Pass(IntakeGate);

impl IntakeGate {
    /// Holds new batches back.
    pub fn hold(&self) -> Hold {
        self.0.send_modify(|counts| counts.holds += 1);
        Hold(self.clone())
    }

    /// Leave for one batch; `None` while they are held back.
    pub fn pass(&self) -> Option<Pass> {
        let mut may = false;
        // Nobody waits for this change.
        self.0.send_if_modified(|counts| {
            may = counts.holds == 0;
            counts.passing += usize::from(may);
            false
        });
        may.then(|| Pass(self.clone()))
    }

    /// Waits until nobody holds batches back.
    pub async fn opened(&self) {
        self.wait_for(|counts| counts.holds == 0).await;
    }

    async fn wait_for(&self, reached: impl FnMut(&Counts) -> bool) {
        // The sender lives as long as `self`, so that this cannot fail.
        let _ = self.0.subscribe().wait_for(reached).await;
    }
}

impl Hold {
    /// Waits until the batches that went before have reached Raft.
    pub async fn quiet(&self) {
        self.0.wait_for(|counts| counts.passing == 0).await;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.send_modify(|counts| counts.holds -= 1);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.0.send_if_modified(|counts| {
            counts.passing -= 1;
            counts.holds > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn the_gate_opens_when_the_last_hold_is_dropped() {
        let gate = IntakeGate::default();
        assert!(gate.pass().is_some());
        let (first, second) = (gate.hold(), gate.hold());
        assert!(gate.pass().is_none());
        drop(second);
        assert!(gate.pass().is_none());
        assert!(gate.opened().now_or_never().is_none());
        drop(first);
        assert!(gate.opened().now_or_never().is_some());
        assert!(gate.pass().is_some());
    }

    #[tokio::test]
    async fn a_hold_is_quiet_once_what_went_before_has_arrived() {
        let gate = IntakeGate::default();
        let pass = gate.pass().unwrap();
        let hold = gate.hold();
        assert!(hold.quiet().now_or_never().is_none());
        let waiting = tokio::spawn(async move {
            hold.quiet().await;
            hold
        });
        tokio::task::yield_now().await;
        drop(pass);
        let hold = waiting.await.unwrap();
        assert!(gate.pass().is_none());
        drop(hold);
        assert!(gate.pass().is_some());
    }
}
