//! A user with rights in one namespace, or the agent of one node, reaches nothing beyond it: no foreign volume, pod or node
//! is freed, held or marked, and no user writes in another's name. Each refusal has its counterpart: the right
//! one may.

use crate::admission::{approval, ask, report, say};
use crate::cluster::{CONTROLLER, Installed, SYSTEM, create, refused};
use crate::schema::recovery;
use crate::words::{allowance, declaration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Client;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use reattach_api::{NodeVolumeReport, VolumeRecovery};
use serde_json::{Value, json};

const AGENT: &str = "system:serviceaccount:reattach-system:reattach-agent";
const RBAC: &str = "rbac.authorization.k8s.io";

/// One request to the API server.
struct Attempt {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// In whose requests' scope; none: the cluster.
    namespace: Option<&'static str>,
    path: String,
    body: Value,
    /// Whether it is the controller's to do; otherwise the administrator's.
    by_controller: bool,
}

impl Attempt {
    /// Sends it; `dry` persists nothing.
    async fn by(&self, client: &Client, dry: bool) -> kube::Result<Value> {
        let query = if dry { "?dryRun=All" } else { "" };
        let uri = format!("{}{query}", self.path);
        let (method, content) = match self.verb {
            "create" => ("POST", "application/json"),
            "delete" => ("DELETE", "application/json"),
            _ => ("PATCH", "application/merge-patch+json"),
        };
        let body = if self.verb == "delete" {
            Vec::new()
        } else {
            self.body.to_string().into_bytes()
        };
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content);
        client.request(request.body(body).expect("a request")).await
    }

    fn refusal(&self, user: &str) -> String {
        let scope = self.namespace.map_or_else(
            || " at the cluster scope".to_owned(),
            |namespace| format!(" in the namespace {namespace:?}"),
        );
        let Self {
            verb,
            group,
            resource,
            ..
        } = self;
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?}{scope}")
    }
}

fn at(group: &str, namespace: Option<&str>, rest: &str) -> String {
    let version = if group == "reattach.dev" {
        "v1alpha1"
    } else {
        "v1"
    };
    let root = if group.is_empty() {
        "/api/v1".to_owned()
    } else {
        format!("/apis/{group}/{version}")
    };
    namespace.map_or_else(
        || format!("{root}/{rest}"),
        |n| format!("{root}/namespaces/{n}/{rest}"),
    )
}

fn annotations(keys: &Value) -> Value {
    json!({ "metadata": { "annotations": keys } })
}

/// Rows of verb, group, resource with subresource, name of the object (`""`: a creation), namespace, body, and whether
/// it is the controller's.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
    Value,
    bool,
);

fn attempts() -> Vec<Attempt> {
    let there = Some("team-b");
    let abort = json!({ "spec": { "abort": { "by": "admin" } } });
    let hold = json!({ "metadata": { "labels": { "reattach.dev/hold": "true" } } });
    let gated = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "gated" },
        "spec": { "containers": [{ "name": "app", "image": "none" }], "schedulingGates": [{ "name": "reattach.dev/hold" }] },
    });
    let evict = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "theirs" },
        "deleteOptions": { "preconditions": { "uid": "to be filled in" } },
    });
    // What would make reattach restore a workload, throw its files away, or look the other way.
    let marks = annotations(&json!({
        "reattach.dev/restore": "{}", "reattach.dev/expendable-emptydirs": "true", "reattach.dev/opt-out": "true",
    }));
    let taint = |key: &str| json!({ "spec": { "taints": [{ "key": key, "value": "x", "effect": "NoSchedule" }] } });
    let lease = |name: &str| {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
            "spec": { "holderIdentity": "somebody" },
        })
    };
    let token = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    let status = json!({ "status": { "phase": "Recovered", "message": "all is well" } });
    let policy = json!({ "spec": { "mode": "Auto" } });
    let ours = "reattach.dev";
    let rows: Vec<Row> = vec![
        (
            "create",
            ours,
            "volumerecoveries",
            "",
            there,
            recovery("theirs", CONTROLLER, json!({})),
            true,
        ),
        (
            "patch",
            ours,
            "volumerecoveries",
            "by-policy",
            there,
            abort,
            false,
        ),
        (
            "patch",
            ours,
            "volumerecoveries",
            "by-policy",
            there,
            json!({ "spec": declaration("admin") }),
            false,
        ),
        (
            "patch",
            ours,
            "volumerecoveries",
            "by-policy",
            there,
            json!({ "spec": allowance("admin") }),
            false,
        ),
        (
            "patch",
            ours,
            "volumerecoveries",
            "by-policy",
            there,
            hold,
            true,
        ),
        (
            "patch",
            ours,
            "volumerecoveries/status",
            "by-policy",
            there,
            status,
            true,
        ),
        (
            "delete",
            ours,
            "volumerecoveries",
            "by-policy",
            there,
            Value::Null,
            true,
        ),
        (
            "patch",
            ours,
            "recoverypolicies",
            "default",
            None,
            policy,
            false,
        ),
        ("create", "", "pods", "", there, gated, false),
        ("patch", "", "pods", "theirs", there, marks.clone(), false),
        ("create", "", "pods/eviction", "theirs", there, evict, true),
        ("delete", "", "pods", "theirs", there, Value::Null, false),
        (
            "patch",
            "apps",
            "deployments",
            "web",
            there,
            marks.clone(),
            false,
        ),
        (
            "patch",
            "apps",
            "deployments/scale",
            "web",
            there,
            json!({ "spec": { "replicas": 0 } }),
            true,
        ),
        (
            "patch",
            "",
            "persistentvolumeclaims",
            "data",
            there,
            marks.clone(),
            false,
        ),
        (
            "patch",
            "",
            "persistentvolumes",
            "pv-b",
            None,
            marks.clone(),
            false,
        ),
        (
            "patch",
            "",
            "namespaces",
            "team-b",
            there,
            marks.clone(),
            false,
        ),
        (
            "patch",
            "storage.k8s.io",
            "volumeattachments",
            "va-b",
            None,
            annotations(&json!({ "reattach.dev/requeued": "now" })),
            true,
        ),
        (
            "delete",
            "storage.k8s.io",
            "volumeattachments",
            "va-b",
            None,
            Value::Null,
            false,
        ),
        (
            "patch",
            "",
            "nodes",
            "node-b",
            None,
            taint("node.kubernetes.io/out-of-service"),
            false,
        ),
        (
            "patch",
            "",
            "nodes",
            "node-b",
            None,
            taint("reattach.dev/quarantine"),
            true,
        ),
        ("patch", "", "nodes", "node-b", None, marks, false),
        (
            "patch",
            "",
            "nodes/status",
            "node-b",
            None,
            json!({ "status": { "volumesInUse": [] } }),
            false,
        ),
        (
            "create",
            "coordination.k8s.io",
            "leases",
            "",
            Some(SYSTEM),
            lease("reattach-mine"),
            true,
        ),
        (
            "create",
            "coordination.k8s.io",
            "leases",
            "",
            Some("kube-node-lease"),
            lease("node-b"),
            false,
        ),
        (
            "create",
            "",
            "serviceaccounts/token",
            "reattach-controller",
            Some(SYSTEM),
            token,
            false,
        ),
    ];
    let attempt = |(verb, group, resource, name, namespace, body, by_controller): Row| {
        let (plural, sub) = resource
            .split_once('/')
            .map_or((resource, ""), |(p, s)| (p, s));
        let rest = [plural, name, sub]
            .into_iter()
            .filter(|p| !p.is_empty())
            .collect::<Vec<_>>()
            .join("/");
        // A Namespace is asked about in its own scope.
        let path = at(group, namespace.filter(|_| plural != "namespaces"), &rest);
        Attempt {
            verb,
            group,
            resource,
            namespace,
            path,
            body,
            by_controller,
        }
    };
    rows.into_iter().map(attempt).collect()
}

/// The objects of another team: a workload with a pod and a volume.
async fn another_team(installed: &Installed<'_>) -> String {
    let admin = &installed.admin;
    let containers = json!([{ "name": "app", "image": "none" }]);
    let web = json!({
        "metadata": { "name": "web" },
        "spec": {
            "replicas": 0, "selector": { "matchLabels": { "app": "web" } },
            "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": containers } },
        },
    });
    create(&Api::<Deployment>::namespaced(admin.clone(), "team-b"), web).await;
    let size = json!({ "requests": { "storage": "1Gi" } });
    let claim = json!({
        "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": size, "volumeName": "pv-b", "storageClassName": "" },
    });
    create(
        &Api::<PersistentVolumeClaim>::namespaced(admin.clone(), "team-b"),
        claim,
    )
    .await;
    let volume = json!({
        "metadata": { "name": "pv-b" },
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" },
            "csi": { "driver": "driver", "volumeHandle": "7001" },
        },
    });
    create(&Api::<PersistentVolume>::all(admin.clone()), volume).await;
    let attachment = json!({
        "metadata": { "name": "va-b" },
        "spec": { "attacher": "driver", "nodeName": "node-b", "source": { "persistentVolumeName": "pv-b" } },
    });
    create(&Api::<VolumeAttachment>::all(admin.clone()), attachment).await;
    let pod = json!({ "metadata": { "name": "theirs" }, "spec": { "nodeName": "node-b", "containers": containers } });
    let pod: Pod = create(&Api::namespaced(admin.clone(), "team-b"), pod).await;
    pod.metadata.uid.expect("a UID")
}

pub async fn what_is_not_theirs(installed: &Installed<'_>) {
    let uid = another_team(installed).await;
    let tenant = installed.as_user("adam").await;
    let agent = installed.as_agent_of("node-a").await;
    for mut attempt in attempts() {
        if attempt.resource == "pods/eviction" {
            attempt.body["deleteOptions"]["preconditions"]["uid"] = uid.clone().into();
        }
        for (who, client) in [("adam", &tenant), (AGENT, &agent)] {
            let what = format!("{} {} by {who}", attempt.verb, attempt.path);
            refused(
                &what,
                attempt.by(client, false).await,
                403,
                &attempt.refusal(who),
            );
        }
        let right = if attempt.by_controller {
            &installed.controller
        } else {
            &installed.admin
        };
        let answer = attempt.by(right, true).await;
        answer
            .unwrap_or_else(|e| panic!("{} {} by the right one: {e}", attempt.verb, attempt.path));
    }
}

/// A namespace's admin has the verb `approve`, and so has a user whose name could be borrowed.
pub async fn names_that_are_not_theirs(installed: &Installed<'_>) {
    let adam = installed.as_user("adam").await;
    let forged = ask(&adam, "team-a", "borrowed", "olga", json!({})).await;
    refused(
        "a requester",
        forged,
        403,
        "ValidatingAdmissionPolicy 'reattach-recovery-authority' with binding 'reattach-recovery-authority' denied request: spec.requester must be your own user name, adam, not olga",
    );
    ask(&adam, "team-a", "borrowed", "adam", json!({}))
        .await
        .expect("his own name");
    for (words, says) in [
        (
            approval("olga"),
            "spec.approval.approver must be your own user name, adam, not olga",
        ),
        (
            json!({ "abort": { "by": "olga", "reason": "hers" } }),
            "spec.abort.by must be your own user name, adam, not olga",
        ),
        (
            declaration("dora"),
            "spec.declaration.declaredBy must be your own user name, adam, not dora",
        ),
        (
            allowance("dora"),
            "spec.powerOff.allowedBy must be your own user name, adam, not dora",
        ),
        (
            declaration(CONTROLLER),
            "spec.declaration.declaredBy must be your own user name, adam, not system:",
        ),
    ] {
        refused(
            &words.to_string(),
            say(&adam, "borrowed", words.clone()).await,
            403,
            says,
        );
        let made = ask(&adam, "team-a", "borrowed-at-once", "adam", words.clone()).await;
        refused(&format!("{words} at creation"), made, 403, says);
    }
    for (who, words) in [
        ("olga", approval("olga")),
        ("dora", declaration("dora")),
        ("dora", allowance("dora")),
        ("adam", json!({ "abort": { "by": "adam" } })),
    ] {
        say(&installed.as_user(who).await, "borrowed", words)
            .await
            .expect("their own name");
    }
    // As another by impersonation, with which every name would be one's own.
    let as_dora = http::Request::get(at(
        "reattach.dev",
        Some("team-a"),
        "volumerecoveries/borrowed",
    ))
    .header("impersonate-user", "dora");
    let answer = adam
        .request::<Value>(as_dora.body(Vec::new()).expect("a request"))
        .await;
    refused("as dora", answer, 403, "cannot impersonate");
}

/// A recovery is about a claim beside it, whatever it is called.
pub async fn claims_of_other_namespaces(installed: &Installed<'_>) {
    let adam = installed.as_user("adam").await;
    let only = "claimName must be the name of a PersistentVolumeClaim in this namespace";
    for claim in [
        "team-b/data",
        "../../team-b/persistentvolumeclaims/data",
        "data?x",
        "data#x",
        "%2e%2e",
        ".",
    ] {
        let made = ask(
            &adam,
            "team-a",
            "elsewhere",
            "adam",
            json!({ "claimName": claim }),
        )
        .await;
        refused(claim, made, 422, only);
    }
    let mut wanted = recovery("elsewhere", "adam", json!({}));
    wanted["metadata"]["namespace"] = "team-b".into();
    let request = http::Request::post(at("reattach.dev", Some("team-a"), "volumerecoveries"))
        .header("content-type", "application/json")
        .body(wanted.to_string().into_bytes())
        .expect("a request");
    let made = adam.request::<Value>(request).await;
    refused(
        "another namespace in the object",
        made,
        400,
        "does not match the namespace",
    );
    ask(
        &adam,
        "team-a",
        "beside-it",
        "adam",
        json!({ "claimName": "data-0.db" }),
    )
    .await
    .expect("a claim's name");
    let moved = say(&adam, "beside-it", json!({ "claimName": "data" })).await;
    refused(
        "another claim later",
        moved,
        422,
        "claimName is fixed once created",
    );
}

/// An answer is that of the node's own agent, and a question the controller's, whichever way it is written.
pub async fn reports_of_other_nodes(installed: &Installed<'_>) {
    let resource = kube::api::ApiResource::erase::<NodeVolumeReport>(&());
    let untyped = |client: Client| Api::<DynamicObject>::all_with(client, &resource);
    let a = untyped(installed.as_agent_of("node-a").await);
    let b = untyped(installed.as_agent_of("node-b").await);
    let adam = untyped(installed.as_user("adam").await);
    let found = untyped(installed.admin.clone())
        .get("node-b")
        .await
        .expect("there");
    let answer = json!([{
        "recovery": "u", "epoch": 1, "identity": { "kernelSerial": "x" }, "bootId": "b",
        "scannedAt": "2026-01-01T00:00:00Z", "seen": "noDevice",
    }]);
    let mut forged = found.clone();
    forged.data["status"] = json!({ "answers": answer });
    let question = json!([{ "recovery": "u", "epoch": 9, "identity": { "kernelSerial": "x" } }]);
    forged.data["spec"]["challenges"] = question.clone();

    let (post, params) = (PostParams::default(), PatchParams::default());
    let only = "the status of NodeVolumeReport node-b is written by the agent on that node only";
    refused(
        "an answer of another node",
        a.replace_status("node-b", &post, &forged).await,
        403,
        only,
    );
    let patch = Patch::Merge(json!({ "status": { "answers": answer } }));
    refused(
        "the same as a patch",
        a.patch_status("node-b", &params, &patch).await,
        403,
        only,
    );
    let applied = json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "status": { "answers": answer },
    });
    let applied = a
        .patch_status(
            "node-b",
            &PatchParams::apply("agent").force(),
            &Patch::Apply(applied),
        )
        .await;
    refused("the same by apply", applied, 403, only);
    let denied = "User \"adam\" cannot patch resource \"nodevolumereports/status\" in API group \"reattach.dev\" at the cluster scope";
    refused(
        "an answer of a tenant",
        adam.patch_status("node-b", &params, &patch).await,
        403,
        denied,
    );

    let ask = Patch::Merge(json!({ "spec": { "challenges": question } }));
    for (who, api) in [(AGENT, &a), (AGENT, &b), ("adam", &adam)] {
        let denied = format!(
            "User {who:?} cannot patch resource \"nodevolumereports\" in API group \"reattach.dev\" at the cluster scope"
        );
        refused(
            "a question",
            api.patch("node-b", &params, &ask).await,
            403,
            &denied,
        );
        let denied = denied.replace("patch", "update");
        refused(
            "the same",
            api.replace("node-b", &post, &forged).await,
            403,
            &denied,
        );
        let denied = denied.replace("update", "delete");
        refused(
            "a delete",
            api.delete("node-b", &Default::default()).await.map(|_| ()),
            403,
            &denied,
        );
    }
    for node in ["node-c", "node-b"] {
        let reports = Api::<NodeVolumeReport>::all(installed.as_agent_of("node-a").await);
        let only = format!("NodeVolumeReport {node} is created by the agent on that node only");
        refused(
            "a report",
            reports.create(&post, &report(node, json!([]))).await,
            403,
            &only,
        );
    }
    // Its own agent answers, and with the answer changes no question.
    let written = b
        .replace_status("node-b", &post, &forged)
        .await
        .expect("its own node's");
    assert_eq!(written.data["status"]["answers"], answer);
    assert_eq!(written.data["spec"], found.data["spec"]);
    let asked = untyped(installed.controller.clone())
        .patch("node-b", &params, &ask)
        .await;
    assert_eq!(
        asked.expect("the controller's").data["spec"]["challenges"],
        question
    );
}

/// A namespace's admin hands on the rights that he has: `approve`, and neither `declare` nor `poweroff` nor `hold`.
pub async fn rights_that_they_lack(installed: &Installed<'_>) {
    let adam = installed.as_user("adam").await;
    let (api, path) = (
        format!("{RBAC}/v1"),
        at(RBAC, Some("team-a"), "rolebindings"),
    );
    let bind = async |client: &Client, role: &str| {
        let binding = json!({
            "apiVersion": api, "kind": "RoleBinding", "metadata": { "name": format!("mine-{role}") },
            "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": role },
            "subjects": [{ "apiGroup": RBAC, "kind": "User", "name": "adam" }],
        });
        let request = http::Request::post(format!("{path}?dryRun=All"))
            .header("content-type", "application/json")
            .body(binding.to_string().into_bytes())
            .expect("a request");
        client.request::<Value>(request).await
    };
    let beyond = "is attempting to grant RBAC permissions not currently held";
    for role in [
        "reattach-declarer",
        "reattach-power-off",
        "reattach-controller",
    ] {
        refused(role, bind(&adam, role).await, 403, beyond);
        bind(&installed.admin, role)
            .await
            .expect("by the administrator");
    }
    bind(&adam, "reattach-approver")
        .await
        .expect("he has that one");
    let recoveries = Api::<VolumeRecovery>::namespaced(installed.admin.clone(), "team-b");
    let untouched: VolumeRecovery = recoveries.get("by-policy").await.expect("there");
    assert!(
        untouched.spec.abort.is_none() && untouched.spec.declaration.is_none(),
        "{:?}",
        untouched.spec
    );
}

/// An editor cannot have a record deleted that only its own people may delete.
pub async fn records_that_they_may_not_delete(installed: &Installed<'_>) {
    let adam = installed.as_user("adam").await;
    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "mine", "uid": "11111111-2222-3333-4444-555555555555" }]);
    let says = "a VolumeRecovery takes no ownerReferences";
    let mut owned = recovery("owned", "adam", json!({}));
    owned["metadata"]["ownerReferences"] = owner.clone();
    let recoveries = Api::<VolumeRecovery>::namespaced(adam.clone(), "team-a");
    let owned = serde_json::from_value(owned).expect("a recovery");
    let made = recoveries.create(&PostParams::default(), &owned).await;
    refused("an owner at creation", made, 403, says);
    let merge = |body: Value| Patch::Merge(json!({ "metadata": body }));
    let params = PatchParams::default();
    let owned = recoveries
        .patch(
            "borrowed",
            &params,
            &merge(json!({ "ownerReferences": owner })),
        )
        .await;
    refused("an owner later", owned, 403, says);

    let finalizer = merge(json!({ "finalizers": ["reattach.dev/restore"] }));
    let controllers = Api::<VolumeRecovery>::namespaced(installed.controller.clone(), "team-a");
    controllers
        .patch("borrowed", &params, &finalizer)
        .await
        .expect("the controller's finalizer");
    let stripped = merge(json!({ "finalizers": [] }));
    let says = "removing the finalizer reattach.dev/restore needs the verb delete on volumerecoveries in namespace team-a";
    refused(
        "a finalizer",
        recoveries.patch("borrowed", &params, &stripped).await,
        403,
        says,
    );
    let theirs = merge(json!({ "finalizers": ["reattach.dev/restore", "adam.example.com/own"] }));
    recoveries
        .patch("borrowed", &params, &theirs)
        .await
        .expect("a finalizer of their own is their affair");
    controllers
        .patch("borrowed", &params, &stripped)
        .await
        .expect("the controller removes its finalizer");
}
