//! The one gate that every effect passes: leadership and time left, mode, approval, deadline, log and count.

use crate::client::Clients;
use crate::lease::Leadership;
use kube::Client;
use reattach_core::plan::SoundPlan;
use reattach_core::policy::Mode;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

pub use reattach_core::journal::Shut;

/// No effect may take longer: an API write is a matter of milliseconds, a cloud call of seconds.
pub const EFFECT_TIMEOUT: Duration = Duration::from_secs(8);

/// Where the locks of nodes are kept unless a process says otherwise: the namespace that `deploy/` installs into.
pub const LOCKS: &str = "reattach-system";

/// The permission to issue one effect now. Made by [`Gate::pass`] only.
pub struct EffectPass {
    client: Client,
    deadline: Instant,
    locks: String,
}

/// The permission to take away once what reattach itself put there: a taint, a gate, a label, a stamp, a lock. The
/// functions of [`crate::tidy`] take it, and nothing else does. Made by [`Gate::tidy`] only.
pub struct TidyPass(EffectPass);

impl TidyPass {
    /// When the effect must be over.
    pub fn deadline(&self) -> Instant {
        self.0.deadline
    }

    /// As a pass for those effects that take something of ours away.
    pub(crate) fn as_effect(&self) -> &EffectPass {
        &self.0
    }
}

impl EffectPass {
    /// The client for Kubernetes effects.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace of the nodes' locks.
    pub(crate) fn locks(&self) -> &str {
        &self.locks
    }

    /// When the effect must be over.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

/// Checks everything that must hold for any effect.
#[derive(Clone)]
pub struct Gate {
    clients: Clients,
    leadership: watch::Receiver<Option<Leadership>>,
    locks: String,
}

/// Who allowed a plan to run.
#[derive(Clone, Debug)]
pub struct Authority<'a> {
    /// The recovery's mode.
    pub mode: Mode,
    /// The approved plan hash, if a person approved one.
    pub approved: Option<&'a str>,
}

impl Gate {
    /// A gate over these clients, open while `leadership` says so.
    pub fn new(clients: Clients, leadership: watch::Receiver<Option<Leadership>>) -> Self {
        Self {
            clients,
            leadership,
            locks: LOCKS.to_owned(),
        }
    }

    /// The same, with the locks of nodes in another namespace than [`LOCKS`].
    #[must_use]
    pub fn locking_nodes_in(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.locks);
        self
    }

    /// The namespace of the nodes' locks.
    pub fn locks(&self) -> &str {
        &self.locks
    }

    /// The leadership as it stands.
    pub fn leadership(&self) -> Option<Leadership> {
        self.leadership
            .borrow()
            .filter(|l| Instant::now() < l.until)
    }

    /// Lets one effect through.
    ///
    /// # Errors
    /// [`Shut`]: nothing may be issued.
    pub fn pass(
        &self,
        plan: &SoundPlan,
        authority: &Authority<'_>,
        term: u64,
    ) -> Result<EffectPass, Shut> {
        let pass = self.put_back(term)?;
        if !authority.mode.may_act() {
            return Err(Shut::Mode {
                mode: authority.mode,
            });
        }
        if authority.mode == Mode::Approve && authority.approved != Some(plan.hash.as_str()) {
            return Err(Shut::NotApproved {
                plan: plan.hash.to_string(),
            });
        }
        Ok(pass)
    }

    /// Lets through one effect of a run that puts something of it back: that needs no mode, policy or approval any more,
    /// and no run may be kept from it.
    ///
    /// # Errors
    /// [`Shut`]: nothing may be issued.
    pub fn put_back(&self, term: u64) -> Result<EffectPass, Shut> {
        let (pass, leadership) = self.leading()?;
        if leadership.term != term {
            return Err(Shut::Term {
                expected: term,
                now: leadership.term,
            });
        }
        Ok(pass)
    }

    /// Lets something of ours be taken away, in any mode: what is left behind by a mode that allowed it goes under every
    /// other.
    ///
    /// # Errors
    /// [`Shut::NotLeader`]: nothing may be issued.
    pub fn tidy(&self) -> Result<TidyPass, Shut> {
        self.leading().map(|(pass, _)| TidyPass(pass))
    }

    fn leading(&self) -> Result<(EffectPass, Leadership), Shut> {
        let deadline = Instant::now() + EFFECT_TIMEOUT;
        let leadership = self
            .leadership()
            .filter(|l| deadline < l.until)
            .ok_or(Shut::NotLeader)?;
        let (client, locks) = (self.clients.effects().clone(), self.locks.clone());
        Ok((
            EffectPass {
                client,
                deadline,
                locks,
            },
            leadership,
        ))
    }
}

#[cfg(test)]
mod tests;
