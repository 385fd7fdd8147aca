//! Exit codes: what scripts may rely on.

use reattach_core::phase::Phase;
use std::process::ExitCode;

/// How a command ended. The numbers are part of the interface; see [`TABLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done: explained, shown, recorded, healed; or nothing is wrong.
    Done = 0,
    /// The command could not do its work.
    Error = 1,
    /// The command line, or a file or name given in it, is wrong.
    Usage = 2,
    /// Trouble of a class that reattach can heal.
    Trouble = 3,
    /// A safety rule forbids to act.
    Refused = 4,
    /// The trouble is real and not one of attachments.
    NotOurs = 5,
    /// Not decided or not over: something must happen first, facts are missing, or the time ran out.
    Waiting = 6,
    /// A recovery ended without success, or needs a person.
    Unhealed = 7,
    /// Interrupted by the user (128 + SIGINT, as shells count).
    Interrupted = 130,
}

impl From<Phase> for Exit {
    /// The exit code of a command that leaves a recovery in this phase.
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Recovered | Phase::Resolved | Phase::Planned => Self::Done,
            Phase::Diagnosing
            | Phase::Waiting
            | Phase::AwaitingApproval
            | Phase::Running
            | Phase::Restoring => Self::Waiting,
            Phase::NotOurs => Self::NotOurs,
            Phase::Refused => Self::Refused,
            Phase::Aborted | Phase::Withdrawn | Phase::Failed | Phase::Stuck => Self::Unhealed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The codes for `--help`.
pub const TABLE: &str = "\
Exit codes:
    0  done: explained, shown, recorded or healed; or nothing is wrong
    1  error: the command could not do its work
    2  the command line is wrong, or a file or name in it
    3  trouble found that reattach can heal
    4  refused: a safety rule forbids to act
    5  not ours: the trouble is real, and detaching would not help
    6  not over: a condition is not met, facts are missing, or the time ran out
    7  a recovery was aborted, failed, or needs a person
  130  interrupted";
