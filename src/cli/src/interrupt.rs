//! Ctrl-C, SIGTERM and a lost terminal, heard from the moment on at which a command has something to put in order.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listener for signals. A signal is kept until the next call of [`Interrupt::heard`].
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    survives_hangup: bool,
}

impl Interrupt {
    /// Begins to listen; from now on the signals end nothing by themselves. `survives_hangup`: a lost terminal is no
    /// wish to stop, and work that is half done goes on without one.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen(survives_hangup: bool) -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            survives_hangup,
        })
    }

    /// Returns when one of the signals has come.
    pub async fn heard(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv(), if !self.survives_hangup => {}
        }
    }
}
