//! Requests of one connection as they come in, each with the memory it takes.
//!
//! A frame is read only when there is memory for all of it: once it has begun nothing keeps it from
//! being finished but its peer, which has [`crate::limits::FRAME_TIMEOUT`]. While there is none the
//! connection is not read; then the frame is refused by its header, and its body is thrown away as
//! it comes.

use std::sync::Arc;

use raftmq_remoting::RemotingCommand;
use tokio::task::yield_now;

use super::frame_io::{ConnectionError, FrameReader};
use crate::{
    budget::{Account, Holder, NoRoom, Permit},
    limits::READ_BUFFER_BYTES_MIN,
};

/// What a request holds besides its frame: a task, the decoded header, a place where it waits.
/// Measured with 8,000 parked pulls: 4.2 KB each. Unit: bytes.
pub const REQUEST_COST_BYTES: usize = 4 << 10;

/// A frame holds its bytes, and what its handler makes of them: the stored form of a message, a
/// parsed body, a filter. Unit: times its length.
const FRAME_COST: usize = 2;

/// What came in.
#[derive(Debug)]
pub enum Received {
    /// A request or a response, and what it holds.
    Taken(RemotingCommand, Permit),
    /// There was no memory for this command, whose body is not read.
    Refused(RemotingCommand),
}

/// Reads the frames of one connection on its account.
#[derive(Debug)]
pub struct Intake {
    reader: FrameReader,
    account: Arc<Account>,
    /// Memory for the frame that is being read.
    paid: Option<Permit>,
    /// Bytes of a refused frame that are still to be thrown away.
    to_skip: usize,
}

impl Intake {
    /// The frames of `reader`, on the account of their sender.
    #[must_use]
    pub fn new(reader: FrameReader, account: Arc<Account>) -> Self {
        Self {
            reader,
            account,
            paid: None,
            to_skip: 0,
        }
    }

    /// The next command; `None` when the peer closed the connection between frames, or the account
    /// is closed. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Received>, ConnectionError> {
        loop {
            if !self.skipped().await? {
                return Ok(None);
            }
            let buffered = self.reader.buffered_bytes();
            let Some(announced) = self.reader.announced()? else {
                if !self.reader.more(0).await? {
                    return Ok(None);
                }
                continue;
            };
            let missing = announced.frame_bytes.saturating_sub(buffered);
            // A small frame is in the read buffer, which every connection has, until it is whole.
            let is_small = announced.frame_bytes <= READ_BUFFER_BYTES_MIN;
            if self.paid.is_none() && (missing == 0 || !is_small) {
                let bytes = REQUEST_COST_BYTES + FRAME_COST * announced.frame_bytes;
                match self.take(bytes).await {
                    Ok(permit) => self.paid = Some(permit),
                    Err(NoRoom::Closed) => return Ok(None),
                    Err(NoRoom::Busy) => {
                        let head = self.head(announced.head_bytes).await?;
                        self.to_skip = announced.frame_bytes;
                        return Ok(Some(Received::Refused(head)));
                    }
                }
                // What came during the wait is read first.
                continue;
            }
            if missing > 0 {
                // Fails when the peer closes: the buffer holds a part of a frame.
                self.reader.more(missing).await?;
                if !is_small {
                    // Bytes that come as fast as they are read: two hundred such connections must
                    // not each go on for as long as the runtime lets them.
                    yield_now().await;
                }
            } else if let Some(permit) = self.paid.take()
                && let Some(command) = self.reader.decode()?
            {
                return Ok(Some(Received::Taken(command, permit)));
            }
        }
    }

    /// Throws away what still comes until the peer closes too.
    pub async fn discard(&mut self, limit: std::time::Duration) {
        self.reader.discard(limit).await;
    }

    /// Takes memory, waiting for it if there is none: the connection is not read meanwhile.
    async fn take(&mut self, bytes: usize) -> Result<Permit, NoRoom> {
        if let Some(permit) = self.account.try_take(Holder::Received, bytes) {
            return Ok(permit);
        }
        let taken = self.account.wait_to_take(Holder::Received, bytes).await;
        self.reader.begin_frame();
        taken
    }

    /// The head of a frame that there is no memory for.
    async fn head(&mut self, head_bytes: usize) -> Result<RemotingCommand, ConnectionError> {
        if head_bytes > READ_BUFFER_BYTES_MIN {
            return Err(ConnectionError::NoRoom);
        }
        loop {
            if let Some(head) = self.reader.decode_head()? {
                return Ok(head);
            }
            let missing = head_bytes.saturating_sub(self.reader.buffered_bytes());
            self.reader.more(missing).await?;
        }
    }

    /// Throws away what is left of a refused frame; false when the peer closed the connection.
    async fn skipped(&mut self) -> Result<bool, ConnectionError> {
        while self.to_skip > 0 {
            self.to_skip -= self.reader.skip(self.to_skip);
            if self.to_skip == 0 {
                self.reader.end_frame();
            } else if !self.reader.more(0).await? {
                return Ok(false);
            } else {
                yield_now().await;
            }
        }
        Ok(true)
    }
}
