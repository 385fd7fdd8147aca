//! Follows one recovery to its end: prints what happens, and asks the user to approve the plan.

use crate::exit::Exit;
use crate::fail::{Fail, one_line};
use crate::interrupt::Interrupt;
use crate::output::{Format, note, print, print_value, prompt};
use crate::plan::{refused, whole_plan};
use crate::records;
use crate::session::Session;
use anyhow::Result;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cluster::rights::RecordedUser;
use reattach_core::ids::ObjectName;
use reattach_report::{TEXT_WIDTH, journal_text, paragraph, status_line};
use std::io::{BufRead, IsTerminal};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Interval of reads of the recovery.
const READ_EVERY: Duration = Duration::from_millis(400);
/// Time for which a failing read is retried: an API server may be restarted in the middle of a recovery.
const RETRY_READS_FOR: Duration = Duration::from_secs(60);
/// A recovery whose status is empty after this time has no controller that drives it.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);
/// An aborted recovery that has touched nothing is over within this time.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

/// How the user decides about the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Show the plan only.
    ShowOnly,
    /// Approve the plan that is shown.
    Given,
    /// Ask on the terminal.
    Ask,
    /// There is no terminal to ask on: show the plan and how to approve it.
    Later,
    /// The user only watches; another person decides.
    Watch,
}

/// Follower of one recovery.
pub struct Follow<'a> {
    pub session: &'a Session,
    pub name: ObjectName,
    pub consent: Consent,
    /// User at the command line, for approval and abort.
    pub user: RecordedUser,
    /// Format of the recovery at its end.
    pub format: Format,
    /// Time at which to stop following.
    pub deadline: Instant,
    /// Does this process drive the recovery? Then a run that has begun is followed to its end, since its steps have time
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

impl<'a> Follow<'a> {
    /// Returns a follower that only watches.
    pub fn watching(
        session: &'a Session,
        name: ObjectName,
        user: RecordedUser,
        timeout: Duration,
    ) -> Self {
        Self {
            session,
            name,
            consent: Consent::Watch,
            user,
            format: Format::Table,
            deadline: Instant::now() + timeout,
            driven_here: false,
        }
    }

    /// Follows until the recovery ends, a person is needed, the time is over, or `gone` turns true (the process that
    /// drives it has stopped).
    pub async fn run(
        &self,
        mut gone: Option<watch::Receiver<bool>>,
        interrupt: &mut Interrupt,
    ) -> Result<Exit> {
        let mut shown = Shown::default();
        let started = Instant::now();
        let mut last_read = Instant::now();
        loop {
            let read = match records::read(self.session, &self.name).await {
                Ok(read) => read,
                Err(error @ (Fail::Unauthorized { .. } | Fail::Forbidden { .. })) => {
                    return Err(error.into());
                }
                Err(error) if last_read.elapsed() > RETRY_READS_FOR => return Err(error.into()),
                Err(_) => {
                    tokio::time::sleep(READ_EVERY).await;
                    continue;
                }
            };
            last_read = Instant::now();
            let Some(recovery) = read else {
                return Err(
                    Fail::Other(format!("VolumeRecovery {} was deleted", self.name)).into(),
                );
            };
            if let Some(end) = self.step(&recovery, &mut shown, started, interrupt).await? {
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
                () = stopped => return self.driver_stopped(&mut shown, interrupt).await,
                () = interrupt.heard() => return self.interrupted().await,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
        }
    }

    /// Prints what is new and does what the phase asks for. Returns the exit code when there is nothing more to follow.
    async fn step(
        &self,
        recovery: &VolumeRecovery,
        shown: &mut Shown,
        started: Instant,
        interrupt: &mut Interrupt,
    ) -> Result<Option<Exit>> {
        let record = match recovery.record(None) {
            Ok(record) => record,
            Err(unreadable) => {
                self.progress(&paragraph(
                    "",
                    &records::unreadable_sentence(&unreadable),
                    TEXT_WIDTH,
                ));
                self.print_recovery(recovery)?;
                return Ok(Some(Exit::Unhealed));
            }
        };
        let phase = recovery.phase();
        if let Some(plan) = record.plan.as_ref().filter(|_| !record.journal.is_empty()) {
            // The text only grows, line by line: print what is new.
            let text = journal_text(plan, &record.journal);
            if shown.journal.is_empty() {
                self.progress("\n");
            }
            self.progress(text.strip_prefix(shown.journal.as_str()).unwrap_or(&text));
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
                self.check_deadline(recovery, "the run continues", false)
                    .await
            }
            _ if self.consent == Consent::Watch => {
                self.phase_changed(phase, &record.message, shown);
                self.check_deadline(recovery, "the recovery continues without you", false)
                    .await
            }
            Phase::Refused => {
                let trouble = record
                    .diagnosis
                    .as_ref()
                    .map(|d| d.verdict.to_string())
                    .unwrap_or_default();
                self.progress(&refused(
                    &format!("Refused, claim {}", record.claim),
                    &trouble,
                    &record.refusals,
                ));
                self.withdraw(recovery, "refused, nothing was touched", phase.into())
                    .await
            }
            Phase::NotOurs => {
                self.progress(&paragraph(
                    "",
                    &format!("{}: {}", record.claim, record.message),
                    TEXT_WIDTH,
                ));
                self.withdraw(
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
                self.withdraw(recovery, "no controller answered", Exit::Waiting)
                    .await
            }
            _ => {
                self.phase_changed(phase, &record.message, shown);
                self.check_deadline(recovery, "there is no plan yet", true)
                    .await
            }
        }
    }

    /// Shows the plan and has it approved, or withdraws the request.
    async fn planned(
        &self,
        recovery: &VolumeRecovery,
        record: &reattach_report::Record,
        shown: &mut Shown,
        interrupt: &mut Interrupt,
    ) -> Result<Option<Exit>> {
        let Some(plan) = &record.plan else {
            self.phase_changed(recovery.phase(), &record.message, shown);
            return self
                .check_deadline(recovery, "there is no plan yet", true)
                .await;
        };
        let hash = plan.hash.to_string();
        if let Some(approval) = &recovery.spec.approval {
            let approved = &approval.plan_hash;
            if *approved == hash {
                return self
                    .check_deadline(recovery, "the plan is approved and has not begun", true)
                    .await;
            }
            note(&format!(
                "The facts have changed since plan {approved} was approved, so nothing has run. The plan is now {hash}."
            ));
            return self
                .withdraw(
                    recovery,
                    "the plan changed after its approval",
                    Exit::Refused,
                )
                .await;
        }
        if shown.plan != hash {
            if !shown.plan.is_empty() {
                self.progress("\nThe facts have changed, and the plan with them:\n\n");
            }
            self.progress(&whole_plan(plan, None));
            shown.plan.clone_from(&hash);
        }
        match self.consent {
            Consent::ShowOnly => {
                self.withdraw(
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
                    self.withdraw(
                        recovery,
                        "not approved, nothing was touched",
                        Exit::Unhealed,
                    )
                    .await
                }
                None => self.interrupted().await.map(Some),
            },
            Consent::Later | Consent::Watch => {
                self.note_how_to_decide(&hash);
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
                    self.note_how_to_decide(hash);
                    return Ok(Some(Exit::Waiting));
                }
                Err(error) => {
                    self.withdraw(
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

    /// Says how to approve the plan that is shown, or to abort the recovery.
    fn note_how_to_decide(&self, hash: &str) {
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

    /// Ends the following if the time is over. With `withdraw` there is no run yet, and the request is withdrawn.
    async fn check_deadline(
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
                .withdraw(recovery, "timed out before it began", Exit::Waiting)
                .await;
        }
        note(&follow_hint(&self.name));
        Ok(Some(Exit::Waiting))
    }

    /// Aborts a recovery that has touched nothing, so that it does not run after this command has ended.
    async fn withdraw(
        &self,
        recovery: &VolumeRecovery,
        why: &str,
        end: Exit,
    ) -> Result<Option<Exit>> {
        let last = recovery.clone();
        records::abort(self.session, &self.name, &self.user.name, Some(why)).await?;
        let until = Instant::now() + SETTLED_WITHIN;
        while Instant::now() < until {
            match records::read(self.session, &self.name).await? {
                Some(r) if !r.phase().is_final() && r.status.is_some() => {
                    tokio::time::sleep(READ_EVERY).await
                }
                _ => break,
            }
        }
        note(&format!("\nRequest {} was withdrawn: {why}.", self.name));
        self.print_recovery(&last)?;
        Ok(Some(end))
    }

    async fn interrupted(&self) -> Result<Exit> {
        let now = records::read(self.session, &self.name).await?;
        match now {
            Some(recovery)
                if !records::under_way(&recovery)
                    && !recovery.phase().is_final()
                    && self.consent != Consent::Watch =>
            {
                self.withdraw(
                    &recovery,
                    "interrupted before it began, nothing was touched",
                    Exit::Interrupted,
                )
                .await?;
            }
            Some(recovery) if records::under_way(&recovery) && !self.driven_here => {
                note("\nInterrupted. The recovery is not over.");
                note(&follow_hint(&self.name));
                note(&format!(
                    "End it:    kubectl reattach abort -n {} {}",
                    self.name.namespace, self.name.name
                ));
            }
            _ => {}
        }
        Ok(Exit::Interrupted)
    }

    /// Ends the following after the process that drives the recovery has stopped.
    async fn driver_stopped(&self, shown: &mut Shown, interrupt: &mut Interrupt) -> Result<Exit> {
        if let Some(recovery) = records::read(self.session, &self.name).await?
            && recovery.phase().is_final()
            && let Some(end) = self
                .step(&recovery, shown, Instant::now(), interrupt)
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

    /// Prints the end of the recovery.
    fn ended(&self, recovery: &VolumeRecovery, end: Exit) -> Result<Exit> {
        if let Ok(record) = recovery.record(None) {
            self.progress(&format!("\n{}\n", status_line(&record)));
        }
        if end != Exit::Done {
            self.progress(&paragraph("  ", &records::message(recovery), TEXT_WIDTH));
        }
        note(&format!(
            "Post-mortem: kubectl reattach report -n {} {}",
            self.name.namespace, self.name.name
        ));
        self.print_recovery(recovery)?;
        Ok(end)
    }

    /// Prints phase and message if they have changed.
    fn phase_changed(&self, phase: Phase, message: &str, shown: &mut Shown) {
        let text = match message {
            "" => "waiting for the first diagnosis".to_owned(),
            message => one_line(message),
        };
        let line = format!("{phase}: {text}");
        if shown.message != line {
            self.progress(&paragraph("", &line, TEXT_WIDTH));
            shown.message = line;
        }
    }

    /// Prints progress: on standard output for people, on standard error if scripts read the output. A closed output does not
    /// stop the recovery.
    fn progress(&self, text: &str) {
        match self.format {
            Format::Table => drop(print(text)),
            _ => note(text.trim_end_matches('\n')),
        }
    }

    fn print_recovery(&self, recovery: &VolumeRecovery) -> Result<()> {
        match self.format {
            Format::Table => Ok(()),
            format => print_value(format, recovery),
        }
    }
}

/// Returns the command that follows a recovery, as a line for the user.
pub fn follow_hint(name: &ObjectName) -> String {
    format!(
        "Follow it: kubectl reattach status -n {} {} --watch",
        name.namespace, name.name
    )
}

/// Can the user be asked on a terminal?
pub fn interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}
