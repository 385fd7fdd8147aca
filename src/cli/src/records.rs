//! VolumeRecoveries: finding them, asking for one, approving, aborting; and their content free of Kubernetes types.

use crate::fail::Fail;
use crate::session::Session;
use kube::Api;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use reattach_api::metadata::MissingField;
use reattach_api::{
    Declaration, NothingUnderWay, Phase, StoredRecovery, UnreadableField, VolumeRecovery,
    VolumeRecoverySpec, VolumeRecoveryStatus,
};
use reattach_cluster::rights::RecordedUser;
use reattach_core::ids::ObjectName;
use reattach_core::plain;
use serde_json::json;

/// Maximum length of a reason, in characters: the bound of the custom resource's fields.
const REASON_CHARS: usize = 1_024;

/// Whether steps have been performed and it is not over.
pub fn under_way(recovery: &VolumeRecovery) -> bool {
    let begun = |s: &VolumeRecoveryStatus| !s.journal.is_empty();
    !recovery.phase().is_final() && recovery.status.as_ref().is_some_and(begun)
}

/// One sentence on where it stands: its status', unless this version cannot read what the run goes by.
pub fn message(recovery: &VolumeRecovery) -> String {
    let said = recovery
        .status
        .as_ref()
        .map(|s| s.message.clone())
        .unwrap_or_default();
    match recovery.history() {
        Ok(_) => said,
        // The controller held the recovery for this reason and says more about it.
        Err(_) if recovery.phase() == Phase::Stuck && !said.is_empty() => said,
        Err(unreadable) => unreadable_sentence(&unreadable),
    }
}

/// What to do about a field that cannot be read.
pub fn unreadable_sentence(unreadable: &UnreadableField) -> String {
    format!(
        "{unreadable}; use the kubectl reattach of the version that wrote it, or read it as it is: kubectl get volumerecovery -o yaml"
    )
}

/// All recoveries of a namespace, or of all; sorted by namespace, claim and age, oldest first.
///
/// # Errors
/// The API server's, as a sentence.
pub async fn list(session: &Session, namespace: Option<&str>) -> Result<Vec<StoredRecovery>, Fail> {
    let client = session.clients.read.clone();
    let api: Api<VolumeRecovery> = namespace.map_or_else(
        || Api::all(client.clone()),
        |n| Api::namespaced(client.clone(), n),
    );
    let found = session
        .ask("list the recoveries", api.list(&ListParams::default()))
        .await?;
    let mut items: Vec<StoredRecovery> = found.iter().map(made_plain).collect::<Result<_, _>>()?;
    items.sort_by_key(|r| (r.claim(), r.created(), r.name().clone()));
    Ok(items)
}

/// The recovery of this name, or the one of the claim of this name that matters most: under way, then not over, then
/// the newest.
///
/// # Errors
/// [`Fail::NoRecovery`], or the API server's.
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

/// Reads one again; `None` when it is gone.
///
/// # Errors
/// The API server's, as a sentence.
pub async fn again(session: &Session, name: &ObjectName) -> Result<Option<StoredRecovery>, Fail> {
    let api: Api<VolumeRecovery> = Api::namespaced(session.clients.read.clone(), &name.namespace);
    let found = session
        .ask("read the recovery", api.get_opt(&name.name))
        .await?;
    Ok(found.as_ref().map(made_plain).transpose()?)
}

/// The recovery as it is shown: people of its namespace wrote a part of it, so no name, reason or message in it keeps a
/// hidden character.
///
/// # Errors
/// It lacks what every stored recovery has.
fn made_plain(recovery: &VolumeRecovery) -> Result<StoredRecovery, MissingField> {
    let mut shown = plain::made_plain(recovery, usize::MAX);
    // A ticket has lines of its own. The controller wrote it, and quoted texts of others in it line by line.
    let ticket = |r: &VolumeRecovery| {
        r.status
            .as_ref()?
            .escalation
            .as_ref()?
            .ticket
            .as_deref()
            .map(plain::page)
    };
    if let (Some(ticket), Some(status)) = (ticket(recovery), &mut shown.status)
        && let Some(told) = &mut status.escalation
    {
        told.ticket = Some(ticket);
    }
    shown.try_into()
}

/// A reason as a person gave it, on one line.
///
/// # Errors
/// It is longer than the custom resource allows.
pub fn reason(given: Option<&str>) -> Result<Option<String>, Fail> {
    let Some(given) = given else { return Ok(None) };
    if given.chars().count() > REASON_CHARS {
        return Err(Fail::Usage(format!(
            "--reason may have at most {REASON_CHARS} characters"
        )));
    }
    Ok(Some(plain::line(given, REASON_CHARS)))
}

/// Asks for a recovery.
///
/// # Errors
/// The API server's, as a sentence; nothing was created then.
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
///
/// # Errors
/// The API server's, as a sentence; the plan does not run then.
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
///
/// # Errors
/// The API server's, as a sentence.
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
    patch(
        session,
        recovery,
        "abort the recovery",
        json!({ "abort": abort }),
    )
    .await
}

/// Records a person's word that an instance cannot write.
///
/// # Errors
/// The API server's, as a sentence; the word does not count then.
pub async fn declare(
    session: &Session,
    recovery: &ObjectName,
    declaration: &Declaration,
) -> Result<(), Fail> {
    patch(
        session,
        recovery,
        "declare that",
        json!({ "declaration": declaration }),
    )
    .await
}

/// Records a person's word that nothing which the recovery ordered is under way at the cloud.
///
/// # Errors
/// The API server's, as a sentence; the word does not count then.
pub async fn nothing_under_way(
    session: &Session,
    recovery: &ObjectName,
    word: &NothingUnderWay,
) -> Result<(), Fail> {
    patch(
        session,
        recovery,
        "declare that",
        json!({ "nothingUnderWay": word }),
    )
    .await
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
