//! When a server process is to stop: SIGTERM, Ctrl-C, or the end of the process that started it.

use std::io::{self, Read};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Environment variable that says: stop when standard input ends. `raftmq local` sets it and holds
/// the other end of the pipe, so that no server outlives it, however it ends.
pub(crate) const PARENT_PIPE_VARIABLE: &str = "RAFTMQ_PARENT_PIPE";

/// The value of [`PARENT_PIPE_VARIABLE`].
pub(crate) const PARENT_PIPE_STDIN: &str = "stdin";

/// Becomes `true` when the process is to stop.
pub(crate) fn shutdown_signal() -> io::Result<watch::Receiver<bool>> {
    let (sender, receiver) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    if std::env::var(PARENT_PIPE_VARIABLE).is_ok_and(|value| value == PARENT_PIPE_STDIN) {
        let sender = sender.clone();
        let thread = std::thread::Builder::new().name("parent-pipe".to_owned());
        thread.spawn(move || {
            wait_for_end(&mut io::stdin());
            tracing::info!("the parent process ended or asks to stop");
            sender.send_replace(true);
        })?;
    }
    tokio::spawn(async move {
        tokio::select! { biased;
            _ = terminate.recv() => tracing::info!("stop on SIGTERM"),
            _ = interrupt.recv() => tracing::info!("stop on SIGINT"),
        }
        sender.send_replace(true);
    });
    Ok(receiver)
}

/// Reads and drops everything until the input ends or fails.
fn wait_for_end(input: &mut impl Read) {
    let mut dropped = [0; 256];
    loop {
        match input.read(&mut dropped) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_that_still_comes_is_not_the_end() {
        let mut input = io::Cursor::new(vec![b'x'; 1000]);
        wait_for_end(&mut input);
        assert_eq!(input.position(), 1000);
    }
}
