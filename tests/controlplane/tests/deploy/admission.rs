//! Authority: the users who may write a name, a mode, an approval, an abort and an answer.

use crate::cluster::{CONTROLLER, Installed, SYSTEM, refused};
use crate::schema::recovery;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use reattach_api::{NodeVolumeReport, VolumeRecovery};
use serde_json::{Value, json};

pub type Answer = kube::Result<VolumeRecovery>;

pub async fn ask(
    client: &Client,
    namespace: &str,
    name: &str,
    who: &str,
    changes: Value,
) -> Answer {
    let api = Api::<VolumeRecovery>::namespaced(client.clone(), namespace);
    let wanted = serde_json::from_value(recovery(name, who, changes)).expect("a recovery");
    api.create(&PostParams::default(), &wanted).await
}

pub async fn say(client: &Client, name: &str, spec: Value) -> Answer {
    let api = Api::<VolumeRecovery>::namespaced(client.clone(), "team-a");
    api.patch(
        name,
        &PatchParams::default(),
        &Patch::Merge(json!({ "spec": spec })),
    )
    .await
}

/// Writes something that is neither approval nor abort.
pub async fn label(client: &Client, name: &str, value: &str) -> Answer {
    let api = Api::<VolumeRecovery>::namespaced(client.clone(), "team-a");
    let patch = Patch::Merge(json!({ "metadata": { "labels": { "ticket": value } } }));
    api.patch(name, &PatchParams::default(), &patch).await
}

pub fn approval(who: &str) -> Value {
    json!({ "approval": { "approver": who, "planHash": "0123456789abcdef" } })
}

pub async fn requesters(installed: &Installed<'_>) {
    let alice = installed.as_user("alice").await;
    let forged = ask(&alice, "team-a", "forged", "olga", json!({})).await;
    refused(
        "a forged requester",
        forged,
        403,
        "spec.requester must be your own user name, alice, not olga",
    );
    let forged = ask(&alice, "team-a", "forged", CONTROLLER, json!({})).await;
    refused(
        "the controller's name",
        forged,
        403,
        "spec.requester must be your own user name, alice",
    );
    // Not even an administrator writes in another user's name.
    let forged = ask(&installed.admin, "team-a", "forged", "alice", json!({})).await;
    refused(
        "a name forged by the administrator",
        forged,
        403,
        "must be your own user name, admin, not alice",
    );
    ask(&alice, "team-a", "by-alice", "alice", json!({}))
        .await
        .expect("her own name");
    let elsewhere = ask(&alice, "team-b", "by-alice", "alice", json!({})).await;
    refused(
        "another namespace",
        elsewhere,
        403,
        "cannot create resource \"volumerecoveries\"",
    );

    let forged = ask(
        &installed.controller,
        "team-b",
        "forged",
        "alice",
        json!({}),
    )
    .await;
    refused(
        "a requester forged by the controller",
        forged,
        403,
        "must be your own user name",
    );
    ask(
        &installed.controller,
        "team-b",
        "by-policy",
        CONTROLLER,
        json!({}),
    )
    .await
    .expect("its own name");
}

pub async fn modes(installed: &Installed<'_>) {
    let (alice, olga) = (
        installed.as_user("alice").await,
        installed.as_user("olga").await,
    );
    let auto = json!({ "mode": "Auto" });
    let refusal = "mode Auto needs the verb approve on volumerecoveries in namespace team-a";
    refused(
        "Auto by alice",
        ask(&alice, "team-a", "auto", "alice", auto.clone()).await,
        403,
        refusal,
    );
    for mode in ["Observe", "DryRun", "Approve"] {
        let name = format!("alice-{}", mode.to_lowercase());
        ask(&alice, "team-a", &name, "alice", json!({ "mode": mode }))
            .await
            .expect("needs no approval");
    }
    ask(&olga, "team-a", "olga-auto", "olga", auto.clone())
        .await
        .expect("olga may approve");
    // A policy decides for the controller; it still approves nothing.
    ask(
        &installed.controller,
        "team-a",
        "policy-auto",
        CONTROLLER,
        auto,
    )
    .await
    .expect("under a policy");
    let own = ask(
        &installed.controller,
        "team-a",
        "own-approval",
        CONTROLLER,
        approval(CONTROLLER),
    )
    .await;
    refused(
        "an approval by the controller",
        own,
        403,
        "approving needs the verb approve",
    );
}

pub async fn approvals(installed: &Installed<'_>) {
    let (alice, olga, paul) = (
        installed.as_user("alice").await,
        installed.as_user("olga").await,
        installed.as_user("paul").await,
    );
    ask(&alice, "team-a", "wanted", "alice", json!({}))
        .await
        .expect("asked for");
    let needs = "approving needs the verb approve on volumerecoveries in namespace team-a";
    refused(
        "her own, without the verb",
        say(&alice, "wanted", approval("alice")).await,
        403,
        needs,
    );
    let forged = say(&alice, "wanted", approval("olga")).await;
    refused(
        "in another's name",
        forged,
        403,
        "spec.approval.approver must be your own user name, alice, not olga",
    );
    refused(
        "the verb, but elsewhere",
        say(&paul, "wanted", approval("paul")).await,
        403,
        needs,
    );
    let forged = say(&olga, "wanted", approval("alice")).await;
    refused(
        "with the verb in another's name",
        forged,
        403,
        "approver must be your own user name, olga, not alice",
    );
    let at_creation = ask(&alice, "team-a", "at-once", "alice", approval("alice")).await;
    refused("at creation, without the verb", at_creation, 403, needs);
    refused(
        "by the controller",
        say(&installed.controller, "wanted", approval(CONTROLLER)).await,
        403,
        needs,
    );

    let approved = say(&olga, "wanted", approval("olga"))
        .await
        .expect("she may");
    assert_eq!(
        approved.spec.approval.map(|a| a.approver).as_deref(),
        Some("olga")
    );
    // The approval stays hers when another user writes the rest.
    label(&alice, "wanted", "t-1")
        .await
        .expect("nothing of the approval changes");
    let stolen = say(
        &paul,
        "wanted",
        json!({ "approval": { "approver": "paul" } }),
    )
    .await;
    refused(
        "a changed approver",
        stolen,
        422,
        "an approval cannot be taken back or changed",
    );

    let adam = installed.as_user("adam").await;
    say(&adam, "alice-approve", approval("adam"))
        .await
        .expect("a namespace's admin may");

    // The right may be given for one recovery by name, and is then for that one only.
    installed.allow_to_approve("paul", "alice-dryrun").await;
    refused(
        "another than the named one",
        say(&paul, "alice-observe", approval("paul")).await,
        403,
        needs,
    );
    say(&paul, "alice-dryrun", approval("paul"))
        .await
        .expect("the named one");
}

pub async fn aborts(installed: &Installed<'_>) {
    let alice = installed.as_user("alice").await;
    let forged = say(&alice, "wanted", json!({ "abort": { "by": "olga" } })).await;
    refused(
        "an abort in another's name",
        forged,
        403,
        "spec.abort.by must be your own user name, alice, not olga",
    );
    let forged = ask(
        &alice,
        "team-a",
        "stillborn",
        "alice",
        json!({ "abort": { "by": "olga" } }),
    )
    .await;
    refused(
        "the same at creation",
        forged,
        403,
        "spec.abort.by must be your own user name",
    );
    // Stopping needs no approval.
    say(
        &alice,
        "wanted",
        json!({ "abort": { "by": "alice", "reason": "wrong claim" } }),
    )
    .await
    .expect("accepted");
    let olga = installed.as_user("olga").await;
    label(&olga, "wanted", "t-2")
        .await
        .expect("nothing of the abort changes");
}

pub async fn status_of_recoveries(installed: &Installed<'_>) {
    let status =
        Patch::Merge(json!({ "status": { "phase": "Recovered", "message": "all is well" } }));
    for who in ["alice", "olga", "erin", "adam"] {
        let api = Api::<VolumeRecovery>::namespaced(installed.as_user(who).await, "team-a");
        let answer = api
            .patch_status("by-alice", &PatchParams::default(), &status)
            .await;
        refused(
            &format!("a status by {who}"),
            answer,
            403,
            "volumerecoveries/status",
        );
        // Nor by way of the object itself.
        let untouched = api
            .patch("by-alice", &PatchParams::default(), &status)
            .await
            .expect("accepted and ignored");
        assert_eq!(untouched.status, None, "{who}");
    }
    let api = Api::<VolumeRecovery>::namespaced(installed.controller.clone(), "team-a");
    let written = api
        .patch_status("by-alice", &PatchParams::default(), &status)
        .await
        .expect("the controller's");
    assert_eq!(
        written.status.map(|s| s.message).as_deref(),
        Some("all is well")
    );
}

pub fn report(node: &str, challenges: Value) -> NodeVolumeReport {
    let value = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport",
        "metadata": { "name": node }, "spec": { "challenges": challenges },
    });
    serde_json::from_value(value).expect("a report")
}

pub async fn reports(installed: &Installed<'_>) {
    let agent = |node: &'static str| async move {
        Api::<NodeVolumeReport>::all(installed.as_agent_of(node).await)
    };
    let (a, b) = (agent("node-a").await, agent("node-b").await);
    let file = installed
        .plane
        .kubeconfig_for_service_account(SYSTEM, "reattach-agent", None)
        .await;
    let nowhere = installed
        .plane
        .client_from(&file.expect("a kubeconfig"))
        .await
        .expect("a client");
    let nowhere = Api::<NodeVolumeReport>::all(nowhere);
    let post = PostParams::default();
    let challenge = json!([{ "recovery": "u", "epoch": 1, "identity": { "kernelSerial": "x" } }]);

    let only = "NodeVolumeReport node-b is created by the agent on that node only";
    refused(
        "another node's report",
        a.create(&post, &report("node-b", json!([]))).await,
        403,
        only,
    );
    refused(
        "a report from nowhere",
        nowhere.create(&post, &report("node-b", json!([]))).await,
        403,
        only,
    );
    let asking = Api::<kube::api::DynamicObject>::all_with(
        installed.as_agent_of("node-a").await,
        &kube::api::ApiResource::erase::<NodeVolumeReport>(&()),
    );
    let asked = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport",
        "metadata": { "name": "node-a" }, "spec": { "challenges": challenge },
    });
    let asked = serde_json::from_value(asked).expect("an object");
    refused(
        "an agent that asks",
        asking.create(&post, &asked).await,
        403,
        "challenges are asked by the controller only",
    );
    let seen = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": { "name": "node-a" },
        "spec": { "challenges": [], "machines": [{ "instance": "999" }] },
    });
    let seen = serde_json::from_value(seen).expect("an object");
    let only = "machines are recorded by the controller only";
    refused(
        "an agent that vouches for a machine",
        asking.create(&post, &seen).await,
        403,
        only,
    );
    a.create(&post, &report("node-a", json!([])))
        .await
        .expect("its own node's");
    b.create(&post, &report("node-b", json!([])))
        .await
        .expect("its own node's");

    let params = PatchParams::default();
    let status = Patch::Merge(json!({ "status": { "observedGeneration": 1 } }));
    let only = "the status of NodeVolumeReport node-b is written by the agent on that node only";
    refused(
        "another node's answer",
        a.patch_status("node-b", &params, &status).await,
        403,
        only,
    );
    refused(
        "an answer from nowhere",
        nowhere.patch_status("node-b", &params, &status).await,
        403,
        only,
    );
    let admin = Api::<NodeVolumeReport>::all(installed.admin.clone());
    refused(
        "an answer by the administrator",
        admin.patch_status("node-b", &params, &status).await,
        403,
        only,
    );
    let controller = Api::<NodeVolumeReport>::all(installed.controller.clone());
    let answer = controller.patch_status("node-b", &params, &status).await;
    refused(
        "an answer by the controller",
        answer,
        403,
        "cannot patch resource \"nodevolumereports/status\"",
    );
    let written = b
        .patch_status("node-b", &params, &status)
        .await
        .expect("its own node's");
    assert_eq!(written.status.and_then(|s| s.observed_generation), Some(1));

    let ask = Patch::Merge(json!({ "spec": { "challenges": [] } }));
    let answer = b.patch("node-b", &params, &ask).await;
    refused(
        "an agent's question",
        answer,
        403,
        "cannot patch resource \"nodevolumereports\"",
    );
    let ask = Patch::Merge(json!({ "spec": { "challenges": challenge } }));
    let untyped = Api::<kube::api::DynamicObject>::all_with(
        installed.controller.clone(),
        &kube::api::ApiResource::erase::<NodeVolumeReport>(&()),
    );
    let asked = untyped
        .patch("node-b", &params, &ask)
        .await
        .expect("the controller's");
    assert_eq!(asked.data["spec"]["challenges"], challenge);
}
