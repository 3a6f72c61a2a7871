//! Who waits for an answer on a link, and whether his request was written.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use super::{Answer, ForwardError};

/// The table of a link. Its lock is taken for a lookup only.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next_id: u64,
    requests: BTreeMap<u64, Pending>,
    closed: bool,
}

#[derive(Debug)]
struct Pending {
    answer: oneshot::Sender<Answer>,
    /// From here on only an answer tells whether it was carried out.
    is_written: bool,
}

/// Somebody who waits; he is forgotten when this is dropped.
#[derive(Debug)]
pub(super) struct Waiter {
    waiting: Arc<Waiting>,
    id: u64,
    answered: oneshot::Receiver<Answer>,
}

/// Ends the table of a link together with its task.
pub(super) struct CloseOnDrop(pub Arc<Waiting>);

impl Waiting {
    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for one more request; `None` when the link has ended.
    pub(super) fn begin(self: &Arc<Self>) -> Option<Waiter> {
        let (answer, answered) = oneshot::channel();
        let id = self.with(|table| {
            let id = table.next_id;
            let pending = Pending {
                answer,
                is_written: false,
            };
            table.next_id += 1;
            (!table.closed).then(|| table.requests.insert(id, pending))?;
            Some(id)
        });
        let waiting = Arc::clone(self);
        id.map(|id| Waiter {
            waiting,
            id,
            answered,
        })
    }

    /// Whether the request is to be written: false when nobody waits for it any more.
    pub(super) fn begin_write(&self, id: u64) -> bool {
        self.with(|table| {
            let pending = table.requests.get_mut(&id);
            pending.map(|pending| pending.is_written = true).is_some()
        })
    }

    pub(super) fn complete(&self, id: u64, answer: Answer) {
        if let Some(pending) = self.with(|table| table.requests.remove(&id)) {
            // He may give up at this very moment.
            let _ = pending.answer.send(answer);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.with(|table| table.closed)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.with(|table| table.requests.len())
    }
}

impl Waiter {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) async fn answer(&mut self) -> Answer {
        let answer = (&mut self.answered).await;
        answer.unwrap_or(Err(ForwardError::Unknown))
    }

    /// What is known when no answer is waited for any more: `nothing_done` if the request was not
    /// written, and never will be.
    pub(super) fn give_up(mut self, nothing_done: ForwardError) -> Answer {
        match self.waiting.with(|table| table.requests.remove(&self.id)) {
            Some(pending) if !pending.is_written => Err(nothing_done),
            Some(_) => Err(ForwardError::Unknown),
            // It came at this very moment.
            None => self
                .answered
                .try_recv()
                .unwrap_or(Err(ForwardError::Unknown)),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.waiting.with(|table| table.requests.remove(&self.id));
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let requests = self.0.with(|table| {
            table.closed = true;
            std::mem::take(&mut table.requests)
        });
        for pending in requests.into_values() {
            let error = if pending.is_written {
                ForwardError::Unknown
            } else {
                ForwardError::Unreachable(io::ErrorKind::ConnectionReset.into())
            };
            let _ = pending.answer.send(Err(error));
        }
    }
}
