//! The restore stamp: the annotation that leads from a workload at zero to the count that it had.
//!
//! # Guarantees
//! An annotation is text that everybody with `patch` on the workload can write, and reattach has a right to scale that they
//! need not have. So the count in a stamp is never taken alone ([`judge`]): the journal of the recovery that scaled the
//! workload says the count; where no journal can be read any more, the stamp counts within what the workload itself shows of
//! its past and within [`MOST_RESTORED`]. A stamp on a workload that reattach never scaled restores nothing.

use crate::ids::Uid;
use crate::workload::{WorkloadFacts, WorkloadRef};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The annotation's key.
pub const STAMP_ANNOTATION: &str = "reattach.dev/restore";

/// Maximum number of replicas that are restored without a journal, whatever the workload's past shows. All pods with one
/// ReadWriteOnce volume are on one node, which takes 110 pods (kubelet's default `maxPods`).
pub const MOST_RESTORED: i32 = 110;

/// What the stamp says. It is written in the same write that sets the replicas to zero, so a workload is never at zero
/// by our hand without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stamp {
    /// The count to restore.
    pub replicas: i32,
    /// The workload's own UID: a stamp copied onto another object restores nothing.
    pub workload: Uid,
    /// The VolumeRecovery that scaled it.
    pub recovery: Uid,
    /// When.
    pub at: Timestamp,
}

impl Stamp {
    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        // A struct of strings and numbers always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads an annotation's value; the error is one sentence.
    pub fn from_annotation(value: &str) -> Result<Self, String> {
        let stamp: Self = serde_json::from_str(value)
            .map_err(|e| format!("annotation {STAMP_ANNOTATION} is not a stamp of ours ({e})"))?;
        if stamp.replicas < 1 {
            return Err(format!(
                "annotation {STAMP_ANNOTATION} would restore to {} replicas",
                stamp.replicas
            ));
        }
        Ok(stamp)
    }
}

/// What is known of the scale to zero that a stamp tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scaled {
    /// A journal says that its recovery scaled this workload from this count.
    Journaled {
        /// The count before.
        replicas: i32,
    },
    /// The recovery that the stamp names exists, and its journal says that it did not scale this workload.
    Never,
    /// There is no journal that can be read: the record was deleted by force, or another version wrote it.
    NoJournal(Traces),
}

/// What a workload itself shows, where no journal can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// `metadata.managedFields` names reattach as the last writer of the stamp, or of the zero. Everybody who may write the
    /// workload can claim that name, so it is a sign and no proof.
    pub written_by_us: bool,
    /// The greatest count that its past shows. `None`: nothing shows one.
    pub past: Option<Shown>,
}

/// A count, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The count.
    pub replicas: i32,
    /// What shows it, such as `3 bound claims of its own`.
    pub by: String,
}

/// What a stamp is good for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The workload is restored to this count.
    Restore {
        /// The count.
        replicas: i32,
        /// The stamp says another count.
        doubt: Option<Doubt>,
    },
    /// Nothing is restored, and the stamp stays where it is.
    Ignore(Foreign),
}

/// A stamp whose count is not the one that is restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The journal says another count.
    Journal {
        /// The stamp's count.
        stamp: i32,
        /// The journal's count.
        journal: i32,
    },
    /// No journal can be read, and the workload's past shows less.
    Past {
        /// The stamp's count.
        stamp: i32,
        /// The count that is restored.
        restored: i32,
        /// What shows it. `None`: nothing shows a count.
        shown: Option<Shown>,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal { stamp, journal } => write!(
                f,
                "the stamp (annotation {STAMP_ANNOTATION}) says {stamp} replicas, and the recovery's journal says {journal}: it was edited. The journal counts, and {journal} is restored. kubectl get --show-managed-fields shows who wrote the annotation"
            ),
            Self::Past {
                stamp,
                restored,
                shown,
            } => {
                write!(
                    f,
                    "the stamp (annotation {STAMP_ANNOTATION}) says {stamp} replicas, no journal of its recovery can be read, and "
                )?;
                match shown {
                    Some(Shown { replicas, by }) if replicas > restored => {
                        write!(f, "without one at most {restored} are restored ({by})")
                    }
                    Some(Shown { by, .. }) => {
                        write!(f, "the workload's own past shows fewer ({by})")
                    }
                    None => f.write_str("nothing in the workload's own past shows more than one"),
                }?;
                write!(
                    f,
                    ". It is restored to {restored}. If it had more, scale it by hand"
                )
            }
        }
    }
}

/// A stamp that tells of nothing that reattach did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// The recovery that it names did not scale the workload.
    NotThatRecovery,
    /// No journal can be read, and neither stamp nor count was last written by reattach.
    NoTrace,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotThatRecovery => "the VolumeRecovery that it names did not scale this workload",
            Self::NoTrace => {
                "the VolumeRecovery that it names has no journal that can be read, and metadata.managedFields does not name reattach as the last writer of the annotation or of a count of zero"
            }
        })?;
        write!(
            f,
            ". The stamp (annotation {STAMP_ANNOTATION}) is ignored. Remove the annotation, and scale the workload by hand if it should run"
        )
    }
}

/// What a stamp on its own workload is good for.
///
/// Without a journal a count beyond the workload's past is cut, not refused: a workload that reattach scaled to zero must not
/// stay there because its record was deleted, and one replica is what a workload with a ReadWriteOnce volume nearly always
/// has. Whoever forged such a stamp gets no more than the workload had before.
pub fn judge(stamp: &Stamp, scaled: &Scaled) -> Verdict {
    match scaled {
        Scaled::Never => Verdict::Ignore(Foreign::NotThatRecovery),
        Scaled::Journaled { replicas } => {
            let doubt = (stamp.replicas != *replicas).then_some(Doubt::Journal {
                stamp: stamp.replicas,
                journal: *replicas,
            });
            Verdict::Restore {
                replicas: *replicas,
                doubt,
            }
        }
        Scaled::NoJournal(Traces {
            written_by_us: false,
            ..
        }) => Verdict::Ignore(Foreign::NoTrace),
        Scaled::NoJournal(Traces {
            written_by_us: true,
            past,
        }) => {
            let shown = past.as_ref().map_or(1, |p| p.replicas.max(1));
            let restored = stamp.replicas.min(shown).min(MOST_RESTORED);
            let doubt = (restored < stamp.replicas).then(|| Doubt::Past {
                stamp: stamp.replicas,
                restored,
                shown: past.clone(),
            });
            Verdict::Restore {
                replicas: restored,
                doubt,
            }
        }
    }
}

/// What is wrong with the stamp of a run on its workload, whose journal says this count. `None`: they say the same, or the
/// stamp is not of this run.
pub fn edited(w: &WorkloadFacts, recovery: &Uid, journal: i32) -> Option<Doubt> {
    let stamp = own(w.stamp.as_ref()?.as_ref().ok()?, &w.workload, recovery)?;
    (stamp.replicas != journal).then_some(Doubt::Journal {
        stamp: stamp.replicas,
        journal,
    })
}

/// The stamp, if it is of this recovery and on the workload that it names.
pub fn own<'a>(stamp: &'a Stamp, workload: &WorkloadRef, recovery: &Uid) -> Option<&'a Stamp> {
    (stamp.recovery == *recovery && stamp.workload == workload.uid).then_some(stamp)
}
