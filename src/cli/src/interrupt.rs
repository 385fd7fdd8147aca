//! Listens for Ctrl-C, SIGTERM and a lost terminal, from the time at which a command has something to undo.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listener for signals. A signal is kept until the next call of [`Interrupt::heard`].
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    survives_hangup: bool,
}

impl Interrupt {
    /// Starts to listen. From now on the signals do not end the process. With `survives_hangup` a lost terminal is ignored, so
    /// that work which has begun continues without one.
    pub fn listen(survives_hangup: bool) -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            survives_hangup,
        })
    }

    /// Returns when a signal has been received.
    pub async fn heard(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv(), if !self.survives_hangup => {}
        }
    }
}
