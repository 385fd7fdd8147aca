//! Checks the user's own rights, before a recovery is created or approved.

use crate::fail::Fail;
use crate::output::note;
use crate::session::Session;
use jiff::Timestamp;
use reattach_cluster::rights::{RecordedUser, reach};
use reattach_core::authority::{Approved, Asker, Ceiling, Mandate, Person, Reach};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::ObjectName;
use reattach_core::plan::{Plan, may_touch_node};
use reattach_core::policy::Mode;

/// Says whether the user may approve a plan of this recovery or claim, and how far such a plan may go.
pub async fn note_approval(session: &Session, about: &ObjectName, me: &RecordedUser) {
    let ns = &about.namespace;
    match reach(&session.clients.records, &me.name, me, "approve", about).await {
        Reach::Cluster => {}
        Reach::Namespace => note(&format!(
            "note: your right to approve ends at namespace {ns}, so the plan goes no further than the RecoveryPolicy of the claim. To go further takes the verb approve on volumerecoveries at cluster scope."
        )),
        Reach::Nowhere => note(&format!(
            "note: you do not have the verb approve on volumerecoveries in namespace {ns}, so the plan waits for an approval. A person with ClusterRole reattach-approver can approve it."
        )),
        Reach::Unknown { why } => note_unknown(&why),
    }
}

/// Makes sure that the user may allow a power-off.
pub async fn require_power_off(
    session: &Session,
    about: &ObjectName,
    me: &RecordedUser,
) -> Result<(), Fail> {
    let ns = &about.namespace;
    match reach(&session.clients.records, &me.name, me, "poweroff", about).await {
        Reach::Cluster => Ok(()),
        Reach::Namespace => {
            note(&format!(
                "note: your right to allow a power-off ends at namespace {ns}, so it counts only where the RecoveryPolicy of the claim allows power-offs."
            ));
            Ok(())
        }
        Reach::Nowhere => Err(Fail::Other(format!(
            "--allow-power-off needs the verb poweroff on volumerecoveries, which you do not have in namespace {ns}. No recovery was created. Run recover without it, or ask a person with ClusterRole reattach-power-off"
        ))),
        Reach::Unknown { why } => {
            note_unknown(&why);
            Ok(())
        }
    }
}

fn note_unknown(why: &str) {
    note(&format!(
        "note: the scope of your rights could not be read: {why}"
    ));
}

/// Returns the mandate of a recovery that the user requests and approves.
pub async fn own_mandate(
    session: &Session,
    me: &RecordedUser,
    plan: &Plan,
    ceiling: Option<Ceiling>,
    allow_power_off: bool,
) -> Mandate {
    let records = &session.clients.records;
    let person = async |verb: &str| {
        let reach = reach(records, &me.name, me, verb, &plan.claim).await;
        Person {
            name: me.name.clone(),
            reach,
        }
    };
    let by = person("approve").await;
    let power_off = match allow_power_off {
        true => Some(person("poweroff").await),
        false => None,
    };
    Mandate {
        mode: Mode::Approve,
        runbook: plan.runbook.clone(),
        ceiling,
        asker: Asker::Person(by.clone()),
        approved: Some(Approved {
            plan: plan.hash.clone(),
            by,
        }),
        power_off,
        declared: None,
    }
}

/// Returns the reasons why the plan may not run under this mandate.
pub fn objections(
    mandate: &Mandate,
    plan: &Plan,
    evidence: &Evidence,
    now: Timestamp,
) -> Vec<String> {
    if let Err(denial) = mandate.may_act(&plan.hash) {
        return vec![denial.to_string()];
    }
    let mut evidence = evidence.clone();
    let source = Source::Kubernetes("RecoveryPolicies and access reviews".to_owned());
    evidence.mandate = Some(Fact::present(mandate.clone(), source, now));
    may_touch_node(plan, evidence.at(now))
        .iter()
        .map(ToString::to_string)
        .collect()
}
