//! Attacks that the API server refuses before any controller sees them: RBAC, the shipped admission policies, the rules of the
//! custom resources, and Kubernetes' own validation. One row each: user, request, and the sentence of the refusal. Attacks that need a
//! running controller stand in `tests/live/tenants.rs`.

use crate::admission::{ask, say};
use crate::cluster::{Installed, LIMIT};
use crate::rights::may;
use crate::schema::recovery;
use kube::Client;
use kube::api::{Api, DeleteParams};
use reattach_api::VolumeRecovery;
use reattach_tests_controlplane::eventually;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A namespace of ServiceAccounts that are called like ours.
const LOOKALIKES: &str = "team-a";

struct Attack {
    what: &'static str,
    who: &'static str,
    method: &'static str,
    path: &'static str,
    body: Value,
    code: u16,
    says: &'static str,
}

const PODS: &str = "/api/v1/namespaces/team-a/pods";
const RECORDS: &str = "/apis/reattach.dev/v1alpha1/namespaces/team-a/volumerecoveries";
const REPORTS: &str = "/apis/reattach.dev/v1alpha1/nodevolumereports";

/// An Event that is made up about an object.
fn event(about: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "made-up"}, "involvedObject": about,
        "reason": "FailedMount", "type": "Warning", "message": "Multi-Attach error for volume pv-b",
    })
}

fn record(name: &str, who: &str, changes: Value, metadata: Value) -> Value {
    let mut object = recovery(name, who, changes);
    if let (Some(own), Value::Object(more)) = (object["metadata"].as_object_mut(), metadata) {
        own.extend(more);
    }
    object
}

fn pod(name: &str, spec: Value) -> Value {
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"automountServiceAccountToken": false, "containers": [{"name": "app", "image": "none"}]},
    });
    if let (Some(own), Value::Object(more)) = (object["spec"].as_object_mut(), spec) {
        own.extend(more);
    }
    object
}

/// Words, records and marks of others.
fn in_namespaces() -> Vec<Attack> {
    let theirs = json!({"apiVersion": "v1", "kind": "Pod", "namespace": "team-b", "name": "theirs", "uid": "u"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "name": "node-b", "uid": "node-b"});
    let lookalike = "system:serviceaccount:team-a:reattach-controller";
    let mark = |key: &str, value: Value| json!({"metadata": {"annotations": {key: value}}});
    let row = |what, who, method, path, body, code, says| Attack {
        what,
        who,
        method,
        path,
        body,
        code,
        says,
    };
    vec![
        row(
            "an event of a pod of others, in her own namespace",
            "erin",
            "POST",
            "/api/v1/namespaces/team-a/events",
            event(&theirs),
            422,
            "does not match event.namespace",
        ),
        row(
            "an event of a Node",
            "erin",
            "POST",
            "/api/v1/namespaces/team-a/events",
            event(&node),
            422,
            "does not match event.namespace",
        ),
        row(
            "an event in the namespace of others",
            "erin",
            "POST",
            "/api/v1/namespaces/team-b/events",
            event(&theirs),
            403,
            "User \"erin\" cannot create resource \"events\" in API group \"\" in the namespace \"team-b\"",
        ),
        row(
            "the opt-out of his own namespace, taken off",
            "adam",
            "PATCH",
            "/api/v1/namespaces/team-a",
            mark("reattach.dev/opt-out", Value::Null),
            403,
            "User \"adam\" cannot patch resource \"namespaces\"",
        ),
        row(
            "every record of his namespace at once",
            "adam",
            "DELETE",
            RECORDS,
            Value::Null,
            403,
            "User \"adam\" cannot deletecollection resource \"volumerecoveries\"",
        ),
        row(
            "a record by somebody who may only look",
            "vera",
            "POST",
            RECORDS,
            record("seen", "vera", json!({}), json!({})),
            403,
            "User \"vera\" cannot create resource \"volumerecoveries\"",
        ),
        row(
            "a record under a path as its name",
            "adam",
            "POST",
            RECORDS,
            record(
                "../../team-b/volumerecoveries/x",
                "adam",
                json!({}),
                json!({}),
            ),
            422,
            "metadata.name: Invalid value",
        ),
        row(
            "a plan that was shown, made to run by its mode",
            "adam",
            "PATCH",
            "RECORD",
            json!({"spec": {"mode": "Auto"}}),
            422,
            "mode is fixed once created: approve the plan, abort, or make a new VolumeRecovery",
        ),
        row(
            "another runbook for a plan that was shown",
            "adam",
            "PATCH",
            "RECORD",
            json!({"spec": {"runbook": "lightest-first"}}),
            422,
            "runbook is fixed once created",
        ),
        row(
            "the groups of others in a record",
            "adam",
            "POST",
            RECORDS,
            record(
                "masters",
                "adam",
                json!({"requesterGroups": ["system:masters"]}),
                json!({}),
            ),
            403,
            "spec.requesterGroups names a group that you are not in",
        ),
        row(
            "a hold by a label at creation",
            "adam",
            "POST",
            RECORDS,
            record(
                "held",
                "adam",
                json!({}),
                json!({"labels": {"reattach.dev/hold": "true"}}),
            ),
            403,
            "the label reattach.dev/hold is set and removed by reattach alone",
        ),
        row(
            "mode Auto by an account that is called like ours",
            lookalike,
            "POST",
            RECORDS,
            record("alike", lookalike, json!({"mode": "Auto"}), json!({})),
            403,
            "mode Auto needs the verb approve on volumerecoveries in namespace team-a",
        ),
        row(
            "our name by an account that is called like ours",
            lookalike,
            "POST",
            RECORDS,
            record("alike", crate::cluster::CONTROLLER, json!({}), json!({})),
            403,
            "spec.requester must be your own user name, system:serviceaccount:team-a:reattach-controller, not",
        ),
        row(
            "a hold by an account that is called like ours",
            lookalike,
            "PATCH",
            "RECORD",
            json!({"metadata": {"labels": {"reattach.dev/hold": "true"}}}),
            403,
            "the label reattach.dev/hold is set and removed by reattach alone",
        ),
        row(
            "a pod with our account, elsewhere",
            "adam",
            "POST",
            PODS,
            pod(
                "borrowed",
                json!({"serviceAccountName": "reattach-of-the-system"}),
            ),
            403,
            "serviceaccount \"reattach-of-the-system\" not found",
        ),
        row(
            "a pod with our account",
            "adam",
            "POST",
            "/api/v1/namespaces/reattach-system/pods",
            pod(
                "borrowed",
                json!({"serviceAccountName": "reattach-controller"}),
            ),
            403,
            "User \"adam\" cannot create resource \"pods\"",
        ),
        row(
            "a shell in our pod",
            "adam",
            "POST",
            "/api/v1/namespaces/reattach-system/pods/reattach-controller-0/exec?command=sh",
            Value::Null,
            403,
            "cannot create resource \"pods/exec\"",
        ),
        row(
            "our gate on a pod that names its node",
            "adam",
            "POST",
            PODS,
            pod(
                "bound",
                json!({"nodeName": "node-b", "schedulingGates": [{"name": "reattach.dev/hold"}]}),
            ),
            422,
            "cannot be set until all schedulingGates have been cleared",
        ),
        row(
            "a node name that is a path",
            "adam",
            "POST",
            PODS,
            pod("elsewhere", json!({"nodeName": "../../nodes/node-b"})),
            422,
            "spec.nodeName: Invalid value",
        ),
    ]
}

/// Objects that belong to the cluster.
fn in_the_cluster() -> Vec<Attack> {
    let lookalike = "system:serviceaccount:team-a:reattach-agent";
    let agent = "agent of node-a";
    let row = |what, who, method, path, body, code, says| Attack {
        what,
        who,
        method,
        path,
        body,
        code,
        says,
    };
    let named = |api: &str, kind: &str, name: &str, spec: Value| json!({"apiVersion": api, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let report = json!({"challenges": [], "machines": [{"instance": "999", "node": "n", "nodeUid": "u",
        "cluster": "c", "bootId": "b"}]});
    let binding =
        "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings/reattach-hold";
    vec![
        row(
            "a policy by the admin of a namespace",
            "adam",
            "POST",
            "/apis/reattach.dev/v1alpha1/recoverypolicies",
            named(
                "reattach.dev/v1alpha1",
                "RecoveryPolicy",
                "mine",
                json!({"mode": "Auto", "precedence": 1000, "powerOff": "Allowed"}),
            ),
            403,
            "User \"adam\" cannot create resource \"recoverypolicies\"",
        ),
        row(
            "a machine that a person records as ours",
            "adam",
            "POST",
            REPORTS,
            named(
                "reattach.dev/v1alpha1",
                "NodeVolumeReport",
                "node-of-others",
                report.clone(),
            ),
            403,
            "User \"adam\" cannot create resource \"nodevolumereports\"",
        ),
        row(
            "a PersistentVolume by a tenant",
            "adam",
            "POST",
            "/api/v1/persistentvolumes",
            named(
                "v1",
                "PersistentVolume",
                "alias",
                json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "csi": {"driver": "driver", "volumeHandle": "7001-x"}}),
            ),
            403,
            "User \"adam\" cannot create resource \"persistentvolumes\"",
        ),
        row(
            "a Node by a tenant",
            "adam",
            "POST",
            "/api/v1/nodes",
            named("v1", "Node", "a-twin", json!({"providerID": "linode://1"})),
            403,
            "User \"adam\" cannot create resource \"nodes\"",
        ),
        row(
            "a VolumeAttachment by a tenant",
            "adam",
            "POST",
            "/apis/storage.k8s.io/v1/volumeattachments",
            named(
                "storage.k8s.io/v1",
                "VolumeAttachment",
                "forged",
                json!({"attacher": "driver", "nodeName": "node-a",
                "source": {"persistentVolumeName": "pv-b"}}),
            ),
            403,
            "User \"adam\" cannot create resource \"volumeattachments\"",
        ),
        row(
            "a driver that needs no attachment",
            "adam",
            "PATCH",
            "/apis/storage.k8s.io/v1/csidrivers/linodebs.csi.linode.com",
            json!({"spec": {"attachRequired": false}}),
            403,
            "User \"adam\" cannot patch resource \"csidrivers\"",
        ),
        row(
            "the hold's binding taken away",
            "adam",
            "DELETE",
            binding,
            Value::Null,
            403,
            "User \"adam\" cannot delete resource \"mutatingadmissionpolicybindings\"",
        ),
        row(
            "an answer by an account that is called like the agents'",
            lookalike,
            "PATCH",
            "/apis/reattach.dev/v1alpha1/nodevolumereports/node-b/status",
            json!({"status": {"observedGeneration": 7}}),
            403,
            "the status of NodeVolumeReport node-b is written by the agent on that node only",
        ),
        row(
            "a record by an agent",
            agent,
            "POST",
            RECORDS,
            record("mine", "agent", json!({}), json!({})),
            403,
            "cannot create resource \"volumerecoveries\"",
        ),
        row(
            "a pod of its node evicted by an agent",
            agent,
            "POST",
            "/api/v1/namespaces/team-b/pods/theirs/eviction",
            json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "theirs"}}),
            403,
            "cannot create resource \"pods/eviction\"",
        ),
        row(
            "the machines in its own report, by an agent",
            agent,
            "PATCH",
            "/apis/reattach.dev/v1alpha1/nodevolumereports/node-a",
            json!({"spec": report}),
            403,
            "cannot patch resource \"nodevolumereports\"",
        ),
        row(
            "its own node ready again, by an agent",
            agent,
            "PATCH",
            "/api/v1/nodes/node-a/status",
            json!({"status": {"volumesInUse": []}}),
            403,
            "cannot patch resource \"nodes/status\"",
        ),
    ]
}

async fn send(client: &Client, attack: &Attack, record: &str) -> kube::Result<Value> {
    let path = if attack.path == "RECORD" {
        format!("{RECORDS}/{record}")
    } else {
        attack.path.to_owned()
    };
    let content = if attack.method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = if attack.body.is_null() {
        Vec::new()
    } else {
        attack.body.to_string().into_bytes()
    };
    let request = http::Request::builder()
        .method(attack.method)
        .uri(path)
        .header("content-type", content);
    client.request(request.body(body).expect("a request")).await
}

/// ServiceAccounts of a tenant's namespace that are called like ours, with every role that their own people could give them, and
/// the agents' role besides, as by an administrator's mistake.
async fn lookalikes(installed: &Installed<'_>) -> BTreeMap<&'static str, Client> {
    let rbac = "rbac.authorization.k8s.io";
    let mut clients = BTreeMap::new();
    for (name, user) in [
        (
            "reattach-controller",
            "system:serviceaccount:team-a:reattach-controller",
        ),
        (
            "reattach-agent",
            "system:serviceaccount:team-a:reattach-agent",
        ),
    ] {
        let metadata = json!({"name": name, "namespace": LOOKALIKES});
        installed
            .apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))
            .await;
        let subject = json!([{"kind": "ServiceAccount", "name": name, "namespace": LOOKALIKES}]);
        installed
            .apply(&json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
                "metadata": {"name": format!("alike-{name}"), "namespace": LOOKALIKES}, "subjects": subject,
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "edit"},
            }))
            .await;
        installed
            .apply(&json!({
                "apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding",
                "metadata": {"name": format!("alike-{name}")}, "subjects": subject,
                "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "reattach-agent"},
            }))
            .await;
        let file = installed
            .plane
            .kubeconfig_for_service_account(LOOKALIKES, name, None)
            .await;
        let client = installed
            .plane
            .client_from(&file.expect("a kubeconfig"))
            .await
            .expect("a client");
        for (resource, verb, namespace) in [
            ("volumerecoveries", "create", Some(LOOKALIKES)),
            ("nodevolumereports", "create", None),
        ] {
            let granted = async || {
                may(&client, "reattach.dev", resource, verb, namespace)
                    .await
                    .then_some(())
            };
            eventually(&format!("right of {user}"), LIMIT, granted)
                .await
                .expect("granted");
        }
        clients.insert(user, client);
    }
    clients
}

pub async fn each_is_refused_by_name(installed: &Installed<'_>) {
    let mut clients = lookalikes(installed).await;
    for who in ["adam", "erin", "vera"] {
        clients.insert(who, installed.as_user(who).await);
    }
    clients.insert("agent of node-a", installed.as_agent_of("node-a").await);
    let record = "shown-to-all";
    ask(
        &clients["adam"],
        "team-a",
        record,
        "adam",
        json!({"mode": "Approve"}),
    )
    .await
    .expect("he may ask");
    let mut wrong = Vec::new();
    for attack in in_namespaces().into_iter().chain(in_the_cluster()) {
        let (code, message) = match send(&clients[attack.who], &attack, record).await {
            Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
            other => (0, format!("{other:?}")),
        };
        if code != attack.code || !message.contains(attack.says) {
            wrong.push(format!(
                "{} ({}): {code} {message}\nexpected {} {}",
                attack.what, attack.who, attack.code, attack.says
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in ["reattach-controller", "reattach-agent"] {
        let bindings =
            Api::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>::all(installed.admin.clone());
        bindings
            .delete(&format!("alike-{name}"), &DeleteParams::default())
            .await
            .expect("deleted");
    }
    words_without_effect(installed, &clients["adam"], record).await;
}

/// Writes that the API server accepts and drops: a status in a new object, and in a change of the spec.
async fn words_without_effect(installed: &Installed<'_>, adam: &Client, record: &str) {
    let scaled = json!({"phase": "Running", "message": "scaled to 5000", "journal": [{"line": "replicas 5000"}]});
    let mut object = recovery("told", "adam", json!({}));
    object["status"] = scaled.clone();
    let request = http::Request::post(RECORDS).header("content-type", "application/json");
    let made: Value = adam
        .request(
            request
                .body(object.to_string().into_bytes())
                .expect("a request"),
        )
        .await
        .expect("made");
    assert_eq!(made.get("status"), None, "a status at creation");
    say(adam, record, json!({"abort": {"by": "adam"}}))
        .await
        .expect("his own");
    let records = Api::<VolumeRecovery>::namespaced(installed.admin.clone(), "team-a");
    let changed =
        kube::api::Patch::Merge(json!({"status": scaled, "metadata": {"labels": {"ticket": "1"}}}));
    let own = Api::<VolumeRecovery>::namespaced(adam.clone(), "team-a");
    own.patch(record, &Default::default(), &changed)
        .await
        .expect("the label");
    let kept = records.get(record).await.expect("there");
    assert_eq!(kept.status, None, "a status in a change of the object");
}
