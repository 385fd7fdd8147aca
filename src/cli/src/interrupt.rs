//! Ctrl-C and SIGTERM, heard from the moment on at which a command has something to put in order.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A listener. A signal that comes while nobody waits is kept until somebody does.
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupt {
    /// Begins to listen; from now on the signals end nothing by themselves.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Returns when one of the signals has come.
    pub async fn heard(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
