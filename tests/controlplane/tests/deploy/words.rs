//! Statements that only their author may write: that an instance cannot write, and that it may be powered off.

use crate::admission::{Answer, ask, label, say};
use crate::cluster::{CONTROLLER, Installed, LIMIT, SYSTEM, object, refused};
use crate::rights::may;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use reattach_api::RecoveryPolicy;
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};

pub fn declaration(who: &str) -> Value {
    json!({ "declaration": {
        "holder": "4711", "declaredBy": who, "reason": "no power", "at": "2026-01-01T00:00:00Z",
    } })
}

/// A person's word that nothing is under way at the cloud.
fn nothing(who: &str) -> Value {
    json!({ "nothingUnderWay": {
        "declaredBy": who, "reason": "no job", "at": "2026-01-01T00:00:00Z",
    } })
}

pub fn allowance(who: &str) -> Value {
    json!({ "powerOff": { "allowedBy": who } })
}

pub async fn declarations(installed: &Installed<'_>) {
    let (alice, dora, dana) = (
        installed.as_user("alice").await,
        installed.as_user("dora").await,
        installed.as_user("dana").await,
    );
    ask(&alice, "team-a", "dead", "alice", json!({}))
        .await
        .expect("asked for");
    let needs = "declaring that an instance cannot write needs the verb declare on volumerecoveries in namespace team-a (ClusterRole reattach-declarer)";
    // Neither an approver nor a namespace's admin, and not by a right in another namespace.
    for who in ["alice", "olga", "erin", "adam", "pat"] {
        let client = installed.as_user(who).await;
        let said = say(&client, "dead", declaration(who)).await;
        refused(&format!("by {who}"), said, 403, needs);
        let at_creation = ask(&client, "team-a", "dead-at-once", who, declaration(who)).await;
        refused(&format!("by {who} at creation"), at_creation, 403, needs);
    }
    let own = |me: &str| {
        format!("spec.declaration.declaredBy must be your own user name, {me}, not dora")
    };
    refused(
        "in dora's name",
        say(&alice, "dead", declaration("dora")).await,
        403,
        &own("alice"),
    );
    refused(
        "by dana in dora's",
        say(&dana, "dead", declaration("dora")).await,
        403,
        &own("dana"),
    );
    let admin = say(&installed.admin, "dead", declaration("dora")).await;
    refused("by the administrator in dora's", admin, 403, &own("admin"));

    // Dora may declare in her namespace; whose a machine is concerns the whole cluster.
    let mut ours = declaration("dora");
    ours["declaration"]["ofThisCluster"] = json!(true);
    let everywhere = "needs the verb declare on volumerecoveries in the whole cluster";
    refused(
        "of this cluster",
        say(&dora, "dead", ours).await,
        403,
        everywhere,
    );
    let by = |answer: Answer| {
        answer
            .expect("she may")
            .spec
            .declaration
            .map(|d| d.declared_by)
    };
    assert_eq!(
        by(say(&dora, "dead", declaration("dora")).await).as_deref(),
        Some("dora")
    );
    // It stays hers when another user writes the rest; no other user can change it.
    label(&alice, "dead", "t-1")
        .await
        .expect("nothing of the declaration changes");
    for change in [
        json!({ "holder": "4712" }),
        json!({ "reason": "another" }),
        json!({ "at": "2026-01-01T00:59:00Z" }),
    ] {
        for (who, client) in [("alice", &alice), ("dana", &dana)] {
            let edited = say(client, "dead", json!({ "declaration": change })).await;
            refused(&format!("{change} by {who}"), edited, 403, &own(who));
        }
    }
    let taken = say(&alice, "dead", declaration("alice")).await;
    refused("taken over without the verb", taken, 403, needs);
    let back = say(&dora, "dead", json!({ "declaration": null })).await;
    refused(
        "taken back",
        back,
        422,
        "a declaration cannot be taken back: abort instead",
    );

    // The other declaration, that nothing is under way at the cloud, needs the same verb and one's own name.
    let needs = "declaring that nothing is under way at the cloud needs the verb declare on volumerecoveries in namespace team-a (ClusterRole reattach-declarer)";
    refused(
        "nothing under way, by alice",
        say(&alice, "dead", nothing("alice")).await,
        403,
        needs,
    );
    let own_name = |me: &str| {
        format!("spec.nothingUnderWay.declaredBy must be your own user name, {me}, not dora")
    };
    refused(
        "in dora's name",
        say(&dana, "dead", nothing("dora")).await,
        403,
        &own_name("dana"),
    );
    say(&dora, "dead", nothing("dora")).await.expect("she may");
    let back = say(&dora, "dead", json!({ "nothingUnderWay": null })).await;
    refused(
        "taken back",
        back,
        422,
        "a declaration that nothing is under way cannot be taken back",
    );

    // Written again, it is the statement of its new author.
    let anew = json!({ "declaration": { "at": "2026-01-01T00:59:00Z" } });
    assert_eq!(by(say(&dora, "dead", anew).await).as_deref(), Some("dora"));
    assert_eq!(
        by(say(&dana, "dead", declaration("dana")).await).as_deref(),
        Some("dana")
    );
    // At creation too.
    let made = ask(&dora, "team-a", "dead-at-once", "dora", declaration("dora")).await;
    assert_eq!(by(made).as_deref(), Some("dora"));
}

pub async fn power_off(installed: &Installed<'_>) {
    let (alice, dora) = (
        installed.as_user("alice").await,
        installed.as_user("dora").await,
    );
    ask(&alice, "team-a", "hung", "alice", json!({}))
        .await
        .expect("asked for");
    let needs = "allowing to power an instance off needs the verb poweroff on volumerecoveries in namespace team-a (ClusterRole reattach-power-off)";
    // The right to declare does not give the right to power off.
    for who in ["alice", "olga", "erin", "adam", "pat", "dana"] {
        let client = installed.as_user(who).await;
        refused(
            &format!("by {who}"),
            say(&client, "hung", allowance(who)).await,
            403,
            needs,
        );
        let at_creation = ask(&client, "team-a", "hung-at-once", who, allowance(who)).await;
        refused(&format!("by {who} at creation"), at_creation, 403, needs);
    }
    let own = "spec.powerOff.allowedBy must be your own user name, alice, not dora";
    refused(
        "in dora's name",
        say(&alice, "hung", allowance("dora")).await,
        403,
        own,
    );
    let own = "spec.powerOff.allowedBy must be your own user name, dora, not alice";
    refused(
        "by dora in another's",
        say(&dora, "hung", allowance("alice")).await,
        403,
        own,
    );

    let allowed = say(&dora, "hung", allowance("dora"))
        .await
        .expect("she may");
    assert_eq!(
        allowed.spec.power_off.map(|p| p.allowed_by).as_deref(),
        Some("dora")
    );
    label(&alice, "hung", "t-1")
        .await
        .expect("nothing of it changes");
    for change in [Value::Null, json!({ "allowedBy": "alice" })] {
        let changed = say(&dora, "hung", json!({ "powerOff": change })).await;
        refused(
            "a change",
            changed,
            422,
            "a permission to power off cannot be taken back or changed",
        );
    }
    ask(&dora, "team-a", "hung-at-once", "dora", allowance("dora"))
        .await
        .expect("at creation too");
}

/// Not even with the rights.
pub async fn never_by_the_controller(installed: &Installed<'_>) {
    let controller = &installed.controller;
    let never = "reattach itself declares nothing and allows no power-off, people do";
    let without = async || {
        refused(
            "declared",
            say(controller, "hung", declaration(CONTROLLER)).await,
            403,
            never,
        );
        refused(
            "allowed",
            say(controller, "dead", allowance(CONTROLLER)).await,
            403,
            never,
        );
        for words in [
            declaration(CONTROLLER),
            nothing(CONTROLLER),
            allowance(CONTROLLER),
        ] {
            let made = ask(controller, "team-a", "by-itself", CONTROLLER, words).await;
            refused("at creation", made, 403, never);
        }
    };
    without().await;
    let api = "rbac.authorization.k8s.io/v1";
    for role in ["reattach-declarer", "reattach-power-off"] {
        installed
            .apply(&json!({
                "apiVersion": api, "kind": "RoleBinding",
                "metadata": { "name": format!("wrongly-{role}"), "namespace": "team-a" },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "kind": "ServiceAccount", "name": "reattach-controller", "namespace": SYSTEM }],
            }))
            .await;
    }
    for verb in ["declare", "poweroff"] {
        let granted = async || {
            may(
                controller,
                "reattach.dev",
                "volumerecoveries",
                verb,
                Some("team-a"),
            )
            .await
            .then_some(())
        };
        eventually("right of the controller", LIMIT, granted)
            .await
            .expect("granted");
    }
    without().await;
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> =
        Api::namespaced(installed.admin.clone(), "team-a");
    for role in ["reattach-declarer", "reattach-power-off"] {
        bindings
            .delete(&format!("wrongly-{role}"), &DeleteParams::default())
            .await
            .expect("deleted");
    }
}

fn policy(name: &str, spec: Value) -> RecoveryPolicy {
    object(json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": { "name": name }, "spec": spec,
    }))
}

/// Two writers of policies; one of them may allow power-off.
async fn writers(installed: &Installed<'_>) -> (Client, Client) {
    let (api, group) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
    let rules = json!([{
        "apiGroups": ["reattach.dev"], "resources": ["recoverypolicies"],
        "verbs": ["get", "list", "create", "update", "patch", "delete", "deletecollection"],
    }]);
    installed
        .apply(&json!({
            "apiVersion": api, "kind": "ClusterRole", "metadata": { "name": "policy-writer" }, "rules": rules,
        }))
        .await;
    for (who, role) in [
        ("pete", "policy-writer"),
        ("petra", "policy-writer"),
        ("petra", "reattach-power-off"),
    ] {
        installed
            .apply(&json!({
                "apiVersion": api, "kind": "ClusterRoleBinding", "metadata": { "name": format!("{who}-{role}") },
                "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": role },
                "subjects": [{ "apiGroup": group, "kind": "User", "name": who }],
            }))
            .await;
    }
    let (pete, petra) = (
        installed.as_user("pete").await,
        installed.as_user("petra").await,
    );
    for (client, verb) in [(&pete, "patch"), (&petra, "patch"), (&petra, "poweroff")] {
        let granted = async || {
            may(client, "reattach.dev", "recoverypolicies", verb, None)
                .await
                .then_some(())
        };
        eventually("right to write policies", LIMIT, granted)
            .await
            .expect("granted");
    }
    (pete, petra)
}

/// Another selector or precedence, or a deletion, is refused to those without the verb.
const HANDS_ON: &str =
    "may hand claims on to a policy that has nodes fenced, and needs the verb poweroff";
const DELETES: &str = "to delete a policy may hand its claims on to a policy that has nodes fenced, and needs the verb poweroff";

pub async fn power_off_by_policy(installed: &Installed<'_>) {
    let (pete, petra) = writers(installed).await;
    let (pete, petra) = (
        Api::<RecoveryPolicy>::all(pete),
        Api::<RecoveryPolicy>::all(petra),
    );
    let post = PostParams::default();
    let change = async |api: &Api<RecoveryPolicy>, spec: Value| {
        api.patch(
            "off",
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": spec })),
        )
        .await
    };
    let raises = |to: &str, from: &str| {
        format!(
            "spec.powerOff {to} (before: {from}) needs the verb poweroff on recoverypolicies (ClusterRole reattach-power-off)"
        )
    };
    for to in ["Allowed", "AllowedAndOn"] {
        let made = pete
            .create(&post, &policy("off", json!({ "powerOff": to })))
            .await;
        refused(
            "created with more than Never",
            made,
            403,
            &raises(to, "Never"),
        );
    }
    pete.create(&post, &policy("off", json!({})))
        .await
        .expect("Never, unsaid");
    for to in ["Allowed", "AllowedAndOn"] {
        let raised = change(&pete, json!({ "powerOff": to })).await;
        refused("raised", raised, 403, &raises(to, "Never"));
    }
    let narrow = json!({ "selector": { "namespaces": ["team-a"] } });
    refused(
        "narrowed",
        change(&pete, narrow.clone()).await,
        403,
        HANDS_ON,
    );
    change(&petra, narrow).await.expect("she may");
    change(&petra, json!({ "powerOff": "Allowed" }))
        .await
        .expect("she may");
    let raised = change(&pete, json!({ "powerOff": "AllowedAndOn" })).await;
    refused(
        "raised further",
        raised,
        403,
        &raises("AllowedAndOn", "Allowed"),
    );

    // Over more claims it is the same right.
    for spec in [
        json!({ "selector": { "namespaces": ["team-a", "team-b"] } }),
        json!({ "precedence": 1000 }),
    ] {
        refused("wider", change(&pete, spec.clone()).await, 403, HANDS_ON);
        change(&petra, spec).await.expect("she may");
    }
    // Every writer of policies may change the rest, and may revoke the permission.
    change(&pete, json!({ "budgets": { "node": 1 } }))
        .await
        .expect("another budget");
    change(&petra, json!({ "powerOff": "AllowedAndOn" }))
        .await
        .expect("she may");
    change(&pete, json!({ "powerOff": "Allowed" }))
        .await
        .expect("lowered");
    change(&pete, json!({ "powerOff": "Never" }))
        .await
        .expect("lowered");
    refused(
        "deleted",
        pete.delete("off", &DeleteParams::default()).await,
        403,
        DELETES,
    );
    petra
        .delete("off", &DeleteParams::default())
        .await
        .expect("she may");
    petra
        .create(&post, &policy("off", json!({ "powerOff": "AllowedAndOn" })))
        .await
        .expect("she may");
    petra
        .delete("off", &DeleteParams::default())
        .await
        .expect("deleted");
}

/// Only users who may allow power-off may write rules for nodes.
pub async fn nodes_by_policy(installed: &Installed<'_>) {
    let (pete, petra) = (
        installed.as_user("pete").await,
        installed.as_user("petra").await,
    );
    let (pete, petra) = (
        Api::<RecoveryPolicy>::all(pete),
        Api::<RecoveryPolicy>::all(petra),
    );
    let post = PostParams::default();
    let change = async |api: &Api<RecoveryPolicy>, spec: Value| {
        api.patch(
            "nodes",
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": spec })),
        )
        .await
    };
    let needs = "other rules for nodes (spec.nodes) need the verb poweroff on recoverypolicies";
    let made = pete
        .create(&post, &policy("nodes", json!({ "nodes": {} })))
        .await;
    refused("created with rules for nodes", made, 403, needs);
    pete.create(&post, &policy("nodes", json!({ "mode": "Observe" })))
        .await
        .expect("without any");
    refused(
        "added",
        change(&pete, json!({ "nodes": {} })).await,
        403,
        needs,
    );
    let rules = json!({ "nodes": { "matchLabels": { "pool": "db" }, "mostTogether": 2 } });
    change(&petra, rules).await.expect("she may");
    for nodes in [
        json!({ "patienceSeconds": 0 }),
        json!({ "mostTogether": 9 }),
        json!({ "optOuts": "Override" }),
        json!({ "matchLabels": { "pool": null } }),
    ] {
        refused(
            &nodes.to_string(),
            change(&pete, json!({ "nodes": nodes })).await,
            403,
            needs,
        );
    }
    refused(
        "wider",
        change(&pete, json!({ "precedence": 7 })).await,
        403,
        HANDS_ON,
    );
    let further = "a less cautious mode of a policy that has nodes fenced";
    refused(
        "further",
        change(&pete, json!({ "mode": "Auto" })).await,
        403,
        further,
    );
    change(&pete, json!({ "budgets": { "node": 1 } }))
        .await
        .expect("another budget");
    change(&petra, json!({ "mode": "Auto" }))
        .await
        .expect("she may");
    change(&pete, json!({ "mode": "Approve" }))
        .await
        .expect("more cautious");
    change(&pete, json!({ "nodes": null }))
        .await
        .expect("no node any more");
    // Where machines may be powered off, rules that go leave the defaults for every node.
    change(
        &petra,
        json!({ "nodes": { "matchLabels": { "pool": "db" } }, "powerOff": "Allowed" }),
    )
    .await
    .expect("she may");
    refused(
        "taken away",
        change(&pete, json!({ "nodes": null })).await,
        403,
        needs,
    );
    petra
        .delete("nodes", &DeleteParams::default())
        .await
        .expect("deleted");
}

/// A policy keeps its claims from the policies below it, and in mode Observe the nodes of its claims from being fenced by any.
pub async fn a_policy_that_keeps_claims_from_another(installed: &Installed<'_>) {
    let (pete, petra) = (
        installed.as_user("pete").await,
        installed.as_user("petra").await,
    );
    let (pete, petra) = (
        Api::<RecoveryPolicy>::all(pete),
        Api::<RecoveryPolicy>::all(petra),
    );
    let (post, delete) = (PostParams::default(), DeleteParams::default());
    let change = async |api: &Api<RecoveryPolicy>, spec: Value| {
        api.patch(
            "keeps",
            &PatchParams::default(),
            &Patch::Merge(json!({ "spec": spec })),
        )
        .await
    };
    let of_all = json!({ "mode": "Auto", "powerOff": "Allowed", "nodes": {} });
    petra
        .create(&post, &policy("fences", of_all))
        .await
        .expect("she may");
    let of_one =
        json!({ "mode": "Observe", "precedence": 100, "selector": { "namespaces": ["team-a"] } });
    pete.create(&post, &policy("keeps", of_one))
        .await
        .expect("it only observes");

    for spec in [
        json!({ "precedence": -1 }),
        json!({ "precedence": 101 }),
        json!({ "selector": { "namespaces": ["team-b"] } }),
        json!({ "selector": { "storageClasses": ["fast"] } }),
    ] {
        refused(
            &spec.to_string(),
            change(&pete, spec.clone()).await,
            403,
            HANDS_ON,
        );
    }
    let observe = "mode Observe keeps the nodes of its claims from being fenced";
    refused(
        "acts",
        change(&pete, json!({ "mode": "DryRun" })).await,
        403,
        observe,
    );
    // A policy above it would rule in its place.
    for mode in ["DryRun", "Auto"] {
        let above = json!({ "mode": mode, "precedence": 101 });
        refused(
            mode,
            pete.create(&post, &policy("above", above)).await,
            403,
            observe,
        );
    }
    refused("deleted", pete.delete("keeps", &delete).await, 403, DELETES);
    let own = ListParams::default().fields("metadata.name=keeps");
    let all = pete.delete_collection(&delete, &own).await;
    assert!(
        all.is_err_and(|e| e.to_string().contains(DELETES)),
        "as a collection"
    );
    petra.get("keeps").await.expect("it is still there");

    // Fields without effect outside the namespace are theirs; all fields are hers.
    change(&pete, json!({ "budgets": { "node": 1 } }))
        .await
        .expect("another budget");
    pete.create(&post, &policy("beside", json!({ "mode": "Auto" })))
        .await
        .expect("the default precedence");
    change(&petra, json!({ "mode": "Auto", "precedence": 7 }))
        .await
        .expect("she may");
    for name in ["keeps", "beside", "fences"] {
        petra.delete(name, &delete).await.expect("she may");
    }
}

/// A record's groups are those of its author, who cannot borrow the rights of another group.
pub async fn groups_of_others(installed: &Installed<'_>) {
    let (alice, olga, dora) = (
        installed.as_user("alice").await,
        installed.as_user("olga").await,
        installed.as_user("dora").await,
    );
    let masters = json!(["system:masters"]);
    let asked = ask(
        &alice,
        "team-a",
        "groups",
        "alice",
        json!({ "requesterGroups": masters }),
    )
    .await;
    refused(
        "a requester",
        asked,
        403,
        "spec.requesterGroups names a group that you are not in",
    );
    let own = json!({ "requesterGroups": ["system:authenticated"] });
    ask(&alice, "team-a", "groups", "alice", own)
        .await
        .expect("her own");
    let change = say(&alice, "groups", json!({ "requesterGroups": null })).await;
    refused(
        "changed",
        change,
        422,
        "requesterGroups is fixed once created",
    );
    for (client, word, mut words, says) in [
        (
            &olga,
            "approval",
            crate::admission::approval("olga"),
            "spec.approval.groups names a group",
        ),
        (
            &dora,
            "declaration",
            declaration("dora"),
            "spec.declaration.groups names a group",
        ),
        (
            &dora,
            "powerOff",
            allowance("dora"),
            "spec.powerOff.groups names a group",
        ),
    ] {
        words[word]["groups"] = masters.clone();
        refused(word, say(client, "groups", words.clone()).await, 403, says);
        words[word]["groups"] = json!(["system:authenticated"]);
        say(client, "groups", words).await.expect("their own");
    }
}
