//! Reads and writes VolumeRecoveries: finds, creates, approves, aborts.

use crate::fail::Fail;
use crate::session::Session;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use reattach_api::metadata::MissingField;
use reattach_api::{
    Declaration, NothingUnderWay, Phase, StoredRecovery, UnreadableField, VolumeRecovery,
    VolumeRecoverySpec,
};
use reattach_cluster::rights::RecordedUser;
use reattach_core::ids::ObjectName;
use reattach_core::plain;
use serde_json::json;

/// Maximum length of a reason, in characters: the bound of the custom resource's fields.
const REASON_CHARS: usize = 1_024;

/// Has a run begun that is not over?
pub fn under_way(recovery: &VolumeRecovery) -> bool {
    let status = recovery.status.as_ref();
    !recovery.phase().is_final() && status.is_some_and(|s| !s.journal.is_empty())
}

/// Returns the message of the status, or, if this version cannot read plan and journal, what to do about that.
pub fn message(recovery: &VolumeRecovery) -> String {
    let message = recovery.status.as_ref().map_or("", |s| s.message.as_str());
    match recovery.history() {
        // A stuck recovery's message gives the reason in more detail.
        Err(_) if recovery.phase() == Phase::Stuck && !message.is_empty() => message.to_owned(),
        Err(unreadable) => unreadable_sentence(&unreadable),
        Ok(_) => message.to_owned(),
    }
}

/// Says what to do about a field that cannot be read.
pub fn unreadable_sentence(unreadable: &UnreadableField) -> String {
    format!(
        "{unreadable}; use the kubectl reattach of the version that wrote it, or read it as it is: kubectl get volumerecovery -o yaml"
    )
}

/// Lists the recoveries of a namespace, or of all; sorted by namespace, claim and age, oldest first.
pub async fn list(session: &Session, namespace: Option<&str>) -> Result<Vec<StoredRecovery>, Fail> {
    let client = session.clients.read.clone();
    let api: Api<VolumeRecovery> = match namespace {
        Some(namespace) => Api::namespaced(client, namespace),
        None => Api::all(client),
    };
    let found = session
        .ask("list the recoveries", api.list(&ListParams::default()))
        .await?;
    let mut items: Vec<StoredRecovery> = found.iter().map(made_plain).collect::<Result<_, _>>()?;
    items.sort_by_key(|r| (r.claim(), r.created(), r.name().clone()));
    Ok(items)
}

/// Finds the recovery of this name, or of the claim of this name: the one that is under way, else one that is not over,
/// else the newest.
pub async fn find(session: &Session, name: &str) -> Result<StoredRecovery, Fail> {
    let all = list(session, Some(&session.namespace)).await?;
    let bare = name.rsplit('/').next().unwrap_or(name);
    let (is_claim, is_recovery) = match name.split_once('/') {
        None => (true, true),
        Some(("pvc" | "persistentvolumeclaim" | "persistentvolumeclaims", _)) => (true, false),
        // As `kubectl get -o name` prints it, too.
        Some((
            "vrec"
            | "volumerecovery"
            | "volumerecoveries"
            | "volumerecovery.reattach.dev"
            | "volumerecoveries.reattach.dev",
            _,
        )) => (false, true),
        Some((kind, _)) => {
            return Err(Fail::Usage(format!(
                "{name:?} is of kind {kind:?}; give the name of a VolumeRecovery or of a claim"
            )));
        }
    };
    if is_recovery && let Some(found) = all.iter().find(|r| r.name().name == bare) {
        return Ok(found.clone());
    }
    let own = all
        .into_iter()
        .filter(|r| is_claim && r.spec.claim_name == bare);
    own.max_by_key(|r| {
        (
            under_way(r),
            !r.phase().is_final(),
            r.created(),
            r.name().clone(),
        )
    })
    .ok_or_else(|| Fail::NoRecovery {
        namespace: session.namespace.clone(),
        name: bare.to_owned(),
    })
}

/// Reads one recovery. `None` if it does not exist.
pub async fn read(session: &Session, name: &ObjectName) -> Result<Option<StoredRecovery>, Fail> {
    let api: Api<VolumeRecovery> = Api::namespaced(session.clients.read.clone(), &name.namespace);
    let found = session
        .ask("read the recovery", api.get_opt(&name.name))
        .await?;
    Ok(found.as_ref().map(made_plain).transpose()?)
}

/// Replaces the hidden characters in names, reasons and messages: people of the recovery's namespace wrote a part of them.
fn made_plain(recovery: &VolumeRecovery) -> Result<StoredRecovery, MissingField> {
    let mut shown = plain::made_plain(recovery, usize::MAX);
    // A ticket has several lines. The controller wrote it, and quoted texts of others in it line by line.
    let status = recovery.status.as_ref();
    let ticket = status.and_then(|s| s.escalation.as_ref()?.ticket.as_deref());
    if let Some(ticket) = ticket
        && let Some(status) = &mut shown.status
        && let Some(escalation) = &mut status.escalation
    {
        escalation.ticket = Some(plain::page(ticket));
    }
    shown.try_into()
}

/// Checks a reason that a person gave, and puts it on one line.
pub fn reason(given: Option<&str>) -> Result<Option<String>, Fail> {
    let Some(given) = given else { return Ok(None) };
    if given.chars().count() > REASON_CHARS {
        return Err(Fail::Usage(format!(
            "--reason may have at most {REASON_CHARS} characters"
        )));
    }
    Ok(Some(plain::line(given, REASON_CHARS)))
}

/// Creates a recovery.
pub async fn create(
    session: &Session,
    namespace: &str,
    spec: VolumeRecoverySpec,
) -> Result<StoredRecovery, Fail> {
    let stem: String = spec.claim_name.chars().take(200).collect();
    let recovery = VolumeRecovery {
        metadata: ObjectMeta {
            generate_name: Some(format!("{stem}-")),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec,
        status: None,
    };
    let api: Api<VolumeRecovery> = Api::namespaced(session.clients.records.clone(), namespace);
    let created = session
        .ask(
            "ask for the recovery",
            api.create(&PostParams::default(), &recovery),
        )
        .await?;
    Ok(created.try_into()?)
}

/// Approves one exact plan of a recovery.
pub async fn approve(
    session: &Session,
    recovery: &ObjectName,
    plan_hash: &str,
    approver: &RecordedUser,
) -> Result<(), Fail> {
    let mut approval = json!({ "planHash": plan_hash, "approver": approver.name });
    if !approver.groups.is_empty() {
        approval["groups"] = json!(approver.groups);
    }
    let spec = json!({ "approval": approval });
    patch(session, recovery, "approve the plan", spec).await
}

/// Aborts a recovery. The process that drives it then undoes what the run did.
pub async fn abort(
    session: &Session,
    recovery: &ObjectName,
    by: &str,
    reason: Option<&str>,
) -> Result<(), Fail> {
    let mut abort = json!({ "by": by });
    if let Some(reason) = reason {
        abort["reason"] = json!(reason);
    }
    let spec = json!({ "abort": abort });
    patch(session, recovery, "abort the recovery", spec).await
}

/// Records a person's declaration that an instance cannot write.
pub async fn declare(
    session: &Session,
    recovery: &ObjectName,
    declaration: &Declaration,
) -> Result<(), Fail> {
    let spec = json!({ "declaration": declaration });
    patch(session, recovery, "declare that", spec).await
}

/// Records a person's declaration that no order of the recovery is under way at the cloud.
pub async fn declare_nothing_under_way(
    session: &Session,
    recovery: &ObjectName,
    declaration: &NothingUnderWay,
) -> Result<(), Fail> {
    let spec = json!({ "nothingUnderWay": declaration });
    patch(session, recovery, "declare that", spec).await
}

async fn patch(
    session: &Session,
    recovery: &ObjectName,
    doing: &str,
    spec: serde_json::Value,
) -> Result<(), Fail> {
    let api: Api<VolumeRecovery> =
        Api::namespaced(session.clients.records.clone(), &recovery.namespace);
    let body = Patch::Merge(json!({ "spec": spec }));
    session
        .ask(
            doing,
            api.patch(&recovery.name, &PatchParams::default(), &body),
        )
        .await?;
    Ok(())
}
