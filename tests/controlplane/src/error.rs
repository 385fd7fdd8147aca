//! Errors of starting and driving a control plane.

use std::{io, path::PathBuf};

use crate::Component;

/// A failure of the harness, not of what is tested.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A file, folder or process could not be handled.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// No folder with all binaries was found or built.
    #[error("no control plane binaries: {reason}")]
    Binaries {
        /// Why, and what to do.
        reason: String,
    },
    /// A component ended by itself while it was awaited.
    #[error("{component} ended ({status}); the end of {}:\n{tail}", log.display())]
    Died {
        /// Which one.
        component: Component,
        /// Its exit status.
        status: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A component did not become ready in time.
    #[error("{component} was not ready after {seconds} s ({last}); the end of {}:\n{tail}", log.display())]
    NotReady {
        /// Which one.
        component: Component,
        /// How long it was awaited.
        seconds: u64,
        /// Its last answer.
        last: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A component was addressed that these options do not contain, or that is not in the needed state.
    #[error("{component} is {state}")]
    WrongState {
        /// Which one.
        component: Component,
        /// The value that was found.
        state: &'static str,
    },
    /// No user of that name was named in the options.
    #[error("there is no user {user:?}: name it in Options::users")]
    UnknownUser {
        /// The name asked for.
        user: String,
    },
    /// The API server refused something that the harness itself needs.
    #[error("{what}: {source}")]
    Kube {
        /// The operation.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// A client could not be made from a kubeconfig that the harness wrote.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// An answer of the API server lacks what it must have.
    #[error("the API server's answer lacks {what}")]
    Incomplete {
        /// The missing part.
        what: String,
    },
    /// The control endpoint of the CSI controller did not answer as agreed.
    #[error("control endpoint of the CSI controller: {reason}")]
    Control {
        /// Description of the error.
        reason: String,
    },
    /// The audit log holds a line that is not an audit event.
    #[error("audit log, line {line}: {source}")]
    AuditLine {
        /// Counted from 1.
        line: usize,
        /// The parser's answer.
        source: serde_json::Error,
    },
    /// A condition that a test waits for did not come.
    #[error("after {seconds} s there is still no {what}")]
    Timeout {
        /// The awaited condition.
        what: String,
        /// For how long.
        seconds: u64,
    },
}

impl HarnessError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    pub(crate) fn kube(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kube {
            what,
            source: Box::new(source),
        }
    }
}
