//! Following one recovery to its end: what happens is printed as it happens, and a person is asked where one must be.

use crate::exit::Exit;
use crate::fail::{Fail, one_line};
use crate::interrupt::Interrupt;
use crate::output::{Format, note, out, prompt};
use crate::plan::{refused, whole_plan};
use crate::records;
use crate::session::Session;
use crate::table::paragraph;
use anyhow::Result;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cluster::rights::RecordedUser;
use reattach_core::ids::ObjectName;
use reattach_report::{TEXT_WIDTH, journal_text, status_line};
use std::io::{BufRead, IsTerminal};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// How often the recovery is read.
const LOOK_EVERY: Duration = Duration::from_millis(400);
/// A read that fails is tried again for so long: an API server may be restarted in the middle of a recovery.
const BEAR: Duration = Duration::from_secs(60);
/// A recovery whose status is empty after this time has no controller that drives it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// An aborted recovery that has touched nothing is over within this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

/// What to do at the points where a person decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Show the plan, and be done.
    ShowOnly,
    /// Approve the plan that is shown.
    Given,
    /// Ask on the terminal.
    Ask,
    /// There is no terminal to ask on: show the plan and how to approve it.
    Later,
    /// Another person decides: only watch.
    Watch,
}

/// How to follow.
#[derive(Clone)]
pub struct Follow<'a> {
    /// The connection.
    pub session: &'a Session,
    /// The recovery.
    pub name: ObjectName,
    /// Who decides.
    pub consent: Consent,
    /// The user, for approval and abort.
    pub user: RecordedUser,
    /// How to print the end.
    pub format: Format,
    /// When to stop following.
    pub deadline: Instant,
    /// Whether this process drives it: a run that has begun is then followed to its end, since its steps have time
    /// limits of their own and no other process would end it.
    pub driven_here: bool,
}

/// What has been printed so far.
#[derive(Default)]
struct Shown {
    message: String,
    plan: String,
    journal: String,
    approved: Option<String>,
}

impl Follow<'_> {
    /// Follows until the recovery ends, a person is needed, the time is over, or `gone` turns true (the process that
    /// drives it has stopped).
    ///
    /// # Errors
    /// The API server's, as a sentence.
    pub async fn run(
        &self,
        mut gone: Option<watch::Receiver<bool>>,
        interrupt: &mut Interrupt,
    ) -> Result<Exit> {
        let mut shown = Shown::default();
        let started = Instant::now();
        let mut heard = Instant::now();
        loop {
            let read = match records::again(self.session, &self.name).await {
                Ok(read) => read,
                Err(error @ (Fail::Unauthorized { .. } | Fail::Forbidden { .. })) => {
                    return Err(error.into());
                }
                Err(error) if heard.elapsed() > BEAR => return Err(error.into()),
                Err(_) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
            };
            heard = Instant::now();
            let Some(recovery) = read else {
                return Err(
                    Fail::Other(format!("VolumeRecovery {} was deleted", self.name)).into(),
                );
            };
            if let Some(end) = self.look(&recovery, &mut shown, started, interrupt).await? {
                return Ok(end);
            }
            let stopped = async {
                match &mut gone {
                    // A sender that is dropped has stopped as well.
                    Some(gone) => drop(gone.wait_for(|g| *g).await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stopped => return self.last_look(&mut shown, interrupt).await,
                () = interrupt.heard() => return self.interrupted().await,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// One look at the recovery; `Some` when there is nothing more to follow.
    async fn look(
        &self,
        recovery: &VolumeRecovery,
        shown: &mut Shown,
        started: Instant,
        interrupt: &mut Interrupt,
    ) -> Result<Option<Exit>> {
        let record = match recovery.record(None) {
            Ok(record) => record,
            Err(unreadable) => {
                self.tell(&paragraph(
                    "",
                    &records::unreadable_sentence(&unreadable),
                    TEXT_WIDTH,
                ));
                self.value(recovery)?;
                return Ok(Some(Exit::Unhealed));
            }
        };
        let phase = recovery.phase();
        if let Some(plan) = record.plan.as_ref().filter(|_| !record.journal.is_empty()) {
            // The text only grows, line by line: print what is new.
            let text = journal_text(plan, &record.journal);
            let fresh = text
                .strip_prefix(shown.journal.as_str())
                .unwrap_or(&text)
                .to_owned();
            if shown.journal.is_empty() {
                self.tell("\n");
            }
            self.tell(&fresh);
            shown.journal = text;
        }
        match phase {
            Phase::Recovered
            | Phase::Resolved
            | Phase::Aborted
            | Phase::Withdrawn
            | Phase::Failed
            | Phase::Stuck => self.ended(recovery, phase.into()).map(Some),
            Phase::Running | Phase::Restoring if self.driven_here => Ok(None),
            Phase::Running | Phase::Restoring => {
                self.late(recovery, "the run continues", false).await
            }
            _ if self.consent == Consent::Watch => {
                self.news(phase, &record.message, shown);
                self.late(recovery, "the recovery continues without you", false)
                    .await
            }
            Phase::Refused => {
                let trouble = record
                    .diagnosis
                    .as_ref()
                    .map(|d| d.verdict.to_string())
                    .unwrap_or_default();
                self.tell(&refused(
                    &format!("Refused, claim {}", record.claim),
                    &trouble,
                    &record.refusals,
                ));
                self.end_request(recovery, "refused, nothing was touched", phase.into())
                    .await
            }
            Phase::NotOurs => {
                self.tell(&paragraph(
                    "",
                    &format!("{}: {}", record.claim, record.message),
                    TEXT_WIDTH,
                ));
                self.end_request(
                    recovery,
                    "the trouble is not ours, nothing was touched",
                    phase.into(),
                )
                .await
            }
            Phase::Planned | Phase::AwaitingApproval => {
                self.planned(recovery, &record, shown, interrupt).await
            }
            Phase::Diagnosing
                if recovery.status.is_none() && started.elapsed() > ANSWERED_WITHIN =>
            {
                note(&format!(
                    "error: no controller has answered VolumeRecovery {} within {} s",
                    self.name,
                    ANSWERED_WITHIN.as_secs()
                ));
                self.end_request(recovery, "no controller answered", Exit::Waiting)
                    .await
            }
            _ => {
                self.news(phase, &record.message, shown);
                self.late(recovery, "there is no plan yet", true).await
            }
        }
    }

    /// There is a plan.
    async fn planned(
        &self,
        recovery: &VolumeRecovery,
        record: &reattach_report::Record,
        shown: &mut Shown,
        interrupt: &mut Interrupt,
    ) -> Result<Option<Exit>> {
        let Some(plan) = &record.plan else {
            self.news(recovery.phase(), &record.message, shown);
            return self.late(recovery, "there is no plan yet", true).await;
        };
        let hash = plan.hash.to_string();
        if let Some(approved) = recovery
            .spec
            .approval
            .as_ref()
            .map(|a| a.plan_hash.as_str())
        {
            if approved == hash {
                return self
                    .late(recovery, "the plan is approved and has not begun", true)
                    .await;
            }
            note(&format!(
                "The facts have changed since plan {approved} was approved, so nothing has run. The plan is now {hash}."
            ));
            return self
                .end_request(
                    recovery,
                    "the plan changed after its approval",
                    Exit::Refused,
                )
                .await;
        }
        if shown.plan != hash {
            if !shown.plan.is_empty() {
                self.tell("\nThe facts have changed, and the plan with them:\n\n");
            }
            self.tell(&whole_plan(plan, None));
            shown.plan.clone_from(&hash);
        }
        match self.consent {
            Consent::ShowOnly => {
                self.end_request(
                    recovery,
                    "dry run: the plan was shown, nothing was touched",
                    Exit::Done,
                )
                .await
            }
            Consent::Given => self.approve(recovery, &hash, shown).await,
            Consent::Ask => match self.ask(&hash, interrupt).await? {
                Some(true) => self.approve(recovery, &hash, shown).await,
                Some(false) => {
                    self.end_request(
                        recovery,
                        "not approved, nothing was touched",
                        Exit::Unhealed,
                    )
                    .await
                }
                None => self.interrupted().await.map(Some),
            },
            Consent::Later | Consent::Watch => {
                self.later(&hash);
                Ok(Some(Exit::Waiting))
            }
        }
    }

    async fn approve(
        &self,
        recovery: &VolumeRecovery,
        hash: &str,
        shown: &mut Shown,
    ) -> Result<Option<Exit>> {
        if shown.approved.as_deref() != Some(hash) {
            match records::approve(self.session, &self.name, hash, &self.user).await {
                Ok(()) => {}
                // To ask and to approve are rights of their own: the plan waits for a person who may approve.
                Err(error @ (Fail::Forbidden { .. } | Fail::Api { .. })) if !self.driven_here => {
                    note(&format!("error: {error}"));
                    self.later(hash);
                    return Ok(Some(Exit::Waiting));
                }
                Err(error) => {
                    self.end_request(
                        recovery,
                        "it could not be approved, nothing was touched",
                        Exit::Error,
                    )
                    .await?;
                    return Err(error.into());
                }
            }
            note(&format!("\nPlan {hash} approved by {}.", self.user.name));
            shown.approved = Some(hash.to_owned());
        }
        Ok(None)
    }

    /// Says how the plan that is shown can be run or dropped.
    fn later(&self, hash: &str) {
        let ns = &self.name.namespace;
        note(&format!(
            "\nTo run it:  kubectl reattach approve -n {ns} {} --plan {hash}",
            self.name.name
        ));
        note(&format!(
            "To drop it: kubectl reattach abort -n {ns} {}",
            self.name.name
        ));
    }

    /// Asks on the terminal; `None` when interrupted.
    async fn ask(&self, hash: &str, interrupt: &mut Interrupt) -> Result<Option<bool>> {
        prompt(&format!("\nRun plan {hash}? [y/N] "))?;
        let (answered, answer) = oneshot::channel();
        // A thread of its own: the runtime would wait at its end for a read that never comes.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            // The receiver is gone after an interrupt.
            let _ = answered.send(read.map(|_| line));
        });
        tokio::select! {
            biased;
            () = interrupt.heard() => Ok(None),
            line = answer => Ok(Some(matches!(line??.trim().to_lowercase().as_str(), "y" | "yes"))),
            () = tokio::time::sleep_until(self.deadline) => Ok(Some(false)),
        }
    }

    /// Whether the time is over. `withdraw`: the request has no run to protect and is taken back.
    async fn late(
        &self,
        recovery: &VolumeRecovery,
        what: &str,
        withdraw: bool,
    ) -> Result<Option<Exit>> {
        if Instant::now() < self.deadline {
            return Ok(None);
        }
        note(&format!("error: the time of --timeout is over; {what}"));
        if withdraw {
            return self
                .end_request(recovery, "timed out before it began", Exit::Waiting)
                .await;
        }
        note(&format!(
            "Follow it with: kubectl reattach status -n {} {} --watch",
            self.name.namespace, self.name.name
        ));
        Ok(Some(Exit::Waiting))
    }

    /// Takes back a request that has touched nothing, so that it neither lingers nor runs later by surprise.
    async fn end_request(
        &self,
        recovery: &VolumeRecovery,
        why: &str,
        end: Exit,
    ) -> Result<Option<Exit>> {
        let last = recovery.clone();
        records::abort(self.session, &self.name, &self.user.name, Some(why)).await?;
        let until = Instant::now() + SETTLED_WITHIN;
        while Instant::now() < until {
            match records::again(self.session, &self.name).await? {
                Some(r) if !r.phase().is_final() && r.status.is_some() => {
                    tokio::time::sleep(LOOK_EVERY).await
                }
                _ => break,
            }
        }
        note(&format!("\nRequest {} was withdrawn: {why}.", self.name));
        self.value(&last)?;
        Ok(Some(end))
    }

    async fn interrupted(&self) -> Result<Exit> {
        let now = records::again(self.session, &self.name).await?;
        match now {
            Some(recovery)
                if !records::under_way(&recovery)
                    && !recovery.phase().is_final()
                    && self.consent != Consent::Watch =>
            {
                self.end_request(
                    &recovery,
                    "interrupted before it began, nothing was touched",
                    Exit::Interrupted,
                )
                .await?;
            }
            Some(recovery) if records::under_way(&recovery) && !self.driven_here => {
                let (ns, name) = (&self.name.namespace, &self.name.name);
                note("\nInterrupted. The recovery is not over.");
                note(&format!(
                    "Follow it: kubectl reattach status -n {ns} {name} --watch"
                ));
                note(&format!("End it:    kubectl reattach abort -n {ns} {name}"));
            }
            _ => {}
        }
        Ok(Exit::Interrupted)
    }

    async fn last_look(&self, shown: &mut Shown, interrupt: &mut Interrupt) -> Result<Exit> {
        if let Some(recovery) = records::again(self.session, &self.name).await?
            && recovery.phase().is_final()
            && let Some(end) = self
                .look(&recovery, shown, Instant::now(), interrupt)
                .await?
        {
            return Ok(end);
        }
        Err(Fail::Other(format!(
            "this process may no longer act on {}: it lost its Lease, or another process took over",
            self.name
        ))
        .into())
    }

    fn ended(&self, recovery: &VolumeRecovery, end: Exit) -> Result<Exit> {
        if let Ok(record) = recovery.record(None) {
            self.tell(&format!("\n{}\n", status_line(&record)));
        }
        if end != Exit::Done {
            self.tell(&paragraph("  ", &records::message(recovery), TEXT_WIDTH));
        }
        note(&format!(
            "Post-mortem: kubectl reattach report -n {} {}",
            self.name.namespace, self.name.name
        ));
        self.value(recovery)?;
        Ok(end)
    }

    /// A line whenever the phase or its sentence changes.
    fn news(&self, phase: Phase, message: &str, shown: &mut Shown) {
        let text = match message {
            "" => "waiting for the first diagnosis".to_owned(),
            message => one_line(message),
        };
        let line = format!("{phase}: {text}");
        if shown.message != line {
            self.tell(&paragraph("", &line, TEXT_WIDTH));
            shown.message = line;
        }
    }

    /// Progress: on standard output for people, beside it when scripts read that. A reader that went away stops no
    /// recovery.
    fn tell(&self, text: &str) {
        match self.format {
            Format::Table => drop(out(text)),
            _ => note(text.trim_end_matches('\n')),
        }
    }

    fn value(&self, recovery: &VolumeRecovery) -> Result<()> {
        match self.format {
            Format::Table => Ok(()),
            format => crate::output::value(format, recovery),
        }
    }
}

/// Whether a person sits at this terminal.
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
