//! `kubectl kustomize`, and what its output says without a cluster.

use reattach_cluster::bounds::{ALWAYS, SCALING};
use reattach_core::hold::{HOLD_LABEL, HOLD_POLICY};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

pub fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

/// Every object of a kustomization, in the order in which kubectl would apply them.
pub fn render(folder: &str) -> Vec<Value> {
    let out = Command::new("kubectl")
        .arg("kustomize")
        .arg(deploy().join(folder))
        .output();
    let out = out.unwrap_or_else(|e| {
        panic!("deploy/ is rendered by `kubectl kustomize`, and kubectl does not run: {e}")
    });
    assert!(
        out.status.success(),
        "{folder}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    assert!(!objects.is_empty(), "{folder} is empty");
    objects
}

pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

pub fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|o| o["kind"] == kind).collect()
}

/// The one object of that kind and name.
pub fn one<'a>(objects: &'a [Value], kind: &str, wanted: &str) -> &'a Value {
    let found: Vec<&Value> = of_kind(objects, kind)
        .into_iter()
        .filter(|o| name(o) == wanted)
        .collect();
    let [one] = found.as_slice() else {
        panic!("{} objects {kind} {wanted}", found.len())
    };
    one
}

/// `kind namespace/name` of everything, sorted.
fn identities(objects: &[Value]) -> BTreeSet<String> {
    let identity = |o: &Value| {
        format!(
            "{} {}/{}",
            text(o, "/kind"),
            text(o, "/metadata/namespace"),
            name(o)
        )
    };
    let all: BTreeSet<String> = objects.iter().map(identity).collect();
    assert_eq!(all.len(), objects.len(), "an object comes twice");
    all
}

/// Every string anywhere in a value.
fn strings(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::String(s) => into.push(s.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(fields) => fields.iter().for_each(|(key, inner)| {
            into.push(key.clone());
            strings(inner, into);
        }),
        _ => {}
    }
}

fn container<'a>(objects: &'a [Value], kind: &str, workload: &str) -> &'a Value {
    let [container] = list(
        one(objects, kind, workload),
        "/spec/template/spec/containers",
    ) else {
        panic!("{workload} has not one container")
    };
    container
}

#[test]
fn the_overlay_adds_cloud_and_scaler_and_removes_nothing() {
    let (base, linode) = (render("base"), render("overlays/linode"));
    let (base_ids, linode_ids) = (identities(&base), identities(&linode));
    assert_eq!(
        base_ids.difference(&linode_ids).collect::<Vec<_>>(),
        Vec::<&String>::new()
    );
    let added: Vec<&str> = linode_ids
        .difference(&base_ids)
        .map(String::as_str)
        .collect();
    assert_eq!(
        added,
        [
            "ClusterRole /reattach-scaler",
            "ClusterRoleBinding /reattach-scaler",
            "NetworkPolicy reattach-system/reattach-agent",
            "NetworkPolicy reattach-system/reattach-controller",
            "ValidatingAdmissionPolicy /reattach-controller-claim-retention",
            "ValidatingAdmissionPolicy /reattach-controller-workloads",
            "ValidatingAdmissionPolicyBinding /reattach-controller-claim-retention",
            "ValidatingAdmissionPolicyBinding /reattach-controller-workloads",
        ]
    );
    let changed: Vec<String> = base
        .iter()
        .filter(|o| !linode.contains(o))
        .map(|o| format!("{} {}", text(o, "/kind"), name(o)))
        .collect();
    assert_eq!(changed, ["Deployment reattach-controller"]);
    let args: Vec<&str> = list(
        container(&linode, "Deployment", "reattach-controller"),
        "/args",
    )
    .iter()
    .filter_map(Value::as_str)
    .collect();
    let lease = "--lease=reattach-controller";
    assert_eq!(
        args,
        [
            "--namespace=$(POD_NAMESPACE)",
            lease,
            "--listen=0.0.0.0:8080",
            "--provider=linode"
        ]
    );
}

#[test]
fn the_cloud_credential_reaches_the_controller_only() {
    let linode = render("overlays/linode");
    assert!(
        of_kind(&linode, "Secret").is_empty(),
        "a Secret is never part of the manifests"
    );
    let controller = container(&linode, "Deployment", "reattach-controller");
    let token = list(controller, "/env")
        .iter()
        .find(|e| e["name"] == "LINODE_TOKEN")
        .expect("LINODE_TOKEN");
    let reference = &token["valueFrom"]["secretKeyRef"];
    assert_eq!(
        (text(reference, "/name"), text(reference, "/key")),
        ("reattach-linode", "token")
    );
    assert!(token.get("value").is_none());
    let mut said = Vec::new();
    strings(one(&linode, "DaemonSet", "reattach-agent"), &mut said);
    let about = |s: &&String| {
        ["secret", "linode", "token", "envFrom"]
            .iter()
            .any(|w| s.to_lowercase().contains(w))
    };
    assert_eq!(said.iter().find(about), None);
    let env = list(container(&linode, "DaemonSet", "reattach-agent"), "/env");
    assert_eq!(
        env.iter().map(|e| text(e, "/name")).collect::<Vec<_>>(),
        ["NODE_NAME"]
    );
}

/// Every right that is not get, list or watch. A new one has to be added here.
#[test]
fn the_rights_to_change_objects_are_complete() {
    let linode = render("overlays/linode");
    let mut writes = BTreeSet::new();
    for role in linode
        .iter()
        .filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role")
    {
        for rule in list(role, "/rules") {
            for (group, resource, verb) in triples(rule) {
                for word in [group, resource, verb] {
                    assert!(!word.contains('*'), "{} has a wildcard", name(role));
                }
                assert_ne!(resource, "secrets", "{}", name(role));
                if !["get", "list", "watch"].contains(&verb) {
                    let at = text(role, "/metadata/namespace");
                    writes.insert(format!("{}{at}: {verb} {resource}.{group}", name(role)));
                }
            }
        }
    }
    let mut expected = BTreeSet::new();
    for (role, verbs, resources) in [
        ("reattach-agent", "create", "nodevolumereports.reattach.dev"),
        (
            "reattach-agent",
            "patch update",
            "nodevolumereports/status.reattach.dev",
        ),
        (
            "reattach-approver",
            "approve",
            "volumerecoveries.reattach.dev",
        ),
        (
            "reattach-controller",
            "create delete hold patch update",
            "volumerecoveries.reattach.dev",
        ),
        (
            "reattach-controller",
            "patch update",
            "volumerecoveries/status.reattach.dev",
        ),
        (
            "reattach-controller",
            "create delete patch update",
            "nodevolumereports.reattach.dev",
        ),
        (
            "reattach-controller",
            "create patch",
            "events. events.events.k8s.io",
        ),
        ("reattach-controller", "create delete patch", "pods."),
        ("reattach-controller", "create", "pods/eviction."),
        (
            "reattach-controller",
            "create",
            "subjectaccessreviews.authorization.k8s.io",
        ),
        (
            "reattach-controller",
            "delete patch",
            "volumeattachments.storage.k8s.io",
        ),
        ("reattach-controller", "patch", "nodes."),
        (
            "reattach-controllerreattach-system",
            "create delete patch update",
            "leases.coordination.k8s.io",
        ),
        (
            "reattach-declarer",
            "declare",
            "volumerecoveries.reattach.dev",
        ),
        (
            "reattach-power-off",
            "poweroff",
            "recoverypolicies.reattach.dev volumerecoveries.reattach.dev",
        ),
        (
            "reattach-operator",
            "create patch",
            "volumerecoveries.reattach.dev",
        ),
        (
            "reattach-scaler",
            "patch update",
            "deployments.apps replicasets.apps statefulsets.apps",
        ),
        (
            "reattach-scaler",
            "patch update",
            "deployments/scale.apps replicasets/scale.apps statefulsets/scale.apps",
        ),
    ] {
        for verb in verbs.split(' ') {
            expected.extend(
                resources
                    .split(' ')
                    .map(|resource| format!("{role}: {verb} {resource}")),
            );
        }
    }
    assert_eq!(writes, expected);
}

fn triples(rule: &Value) -> Vec<(&str, &str, &str)> {
    let words =
        |key: &str| -> Vec<&str> { list(rule, key).iter().filter_map(Value::as_str).collect() };
    let mut all = Vec::new();
    for group in words("/apiGroups") {
        for resource in words("/resources") {
            all.extend(
                words("/verbs")
                    .into_iter()
                    .map(|verb| (group, resource, verb)),
            );
        }
    }
    all
}

#[test]
fn every_reference_has_its_object() {
    let linode = render("overlays/linode");
    for binding in linode
        .iter()
        .filter(|o| text(o, "/kind").ends_with("RoleBinding"))
    {
        let role = one_in(
            &linode,
            text(binding, "/roleRef/kind"),
            text(binding, "/roleRef/name"),
            binding,
        );
        assert!(!list(role, "/rules").is_empty());
        for subject in list(binding, "/subjects") {
            assert_eq!(text(subject, "/namespace"), "reattach-system");
            one(&linode, "ServiceAccount", text(subject, "/name"));
        }
    }
    // A policy without a binding does nothing, without any error.
    for policy in of_kind(&linode, "ValidatingAdmissionPolicy") {
        let binding = one(&linode, "ValidatingAdmissionPolicyBinding", name(policy));
        assert_eq!(text(binding, "/spec/policyName"), name(policy));
        assert_eq!(
            binding["spec"]["validationActions"],
            serde_json::json!(["Deny"])
        );
        assert_eq!(
            text(policy, "/spec/failurePolicy"),
            "Fail",
            "{}",
            name(policy)
        );
        assert!(
            binding["spec"].get("matchResources").is_none(),
            "{} is bound to a part only",
            name(policy)
        );
    }
    // The policy that changes objects fails open, and does nothing without a hold.
    let policies = of_kind(&linode, "MutatingAdmissionPolicy");
    assert_eq!(
        policies.iter().map(|p| name(p)).collect::<Vec<_>>(),
        [HOLD_POLICY]
    );
    assert_eq!(text(policies[0], "/spec/failurePolicy"), "Ignore");
    let binding = one(&linode, "MutatingAdmissionPolicyBinding", HOLD_POLICY);
    assert_eq!(text(binding, "/spec/policyName"), HOLD_POLICY);
    assert_eq!(
        text(binding, "/spec/paramRef/parameterNotFoundAction"),
        "Allow"
    );
    let held = serde_json::json!({ HOLD_LABEL: "true" });
    assert_eq!(binding["spec"]["paramRef"]["selector"]["matchLabels"], held);
}

/// The controller reads these policies at its start, and does not start for an account that they do not name.
#[test]
fn the_controller_knows_each_policy_that_bounds_it() {
    bounded("reattach-system", &render("overlays/linode"));
}

/// Another namespace, as docs/install.md has it: accounts, bindings and policies move together.
#[test]
fn policies_follow_the_namespace_of_the_installation() {
    let moved: Vec<Value> = render("overlays/linode")
        .into_iter()
        .map(|object| {
            let text = object
                .to_string()
                .replace("reattach-system", "storage-rescue");
            serde_json::from_str(&text).expect("JSON")
        })
        .collect();
    bounded("storage-rescue", &moved);
    let leases = one_of(&moved, "Role", "kube-node-lease", "reattach-controller");
    assert!(
        !list(leases, "/rules").is_empty(),
        "kubelet's Leases stay where they are"
    );
    let account = one_of(&moved, "ServiceAccount", "storage-rescue", "reattach-agent");
    let agent = format!("system:serviceaccount:storage-rescue:{}", name(account));
    for policy in ["reattach-report-status", "reattach-report-create"] {
        let mut said = Vec::new();
        strings(one(&moved, "ValidatingAdmissionPolicy", policy), &mut said);
        assert!(
            said.iter().any(|text| text.contains(&format!("'{agent}'"))),
            "{policy}"
        );
    }
    for binding in moved
        .iter()
        .filter(|o| text(o, "/kind").ends_with("RoleBinding"))
    {
        for subject in list(binding, "/subjects") {
            assert_eq!(
                text(subject, "/namespace"),
                "storage-rescue",
                "{}",
                name(binding)
            );
        }
    }
}

/// kustomize itself refuses `namespace:` over these manifests: the Role for kubelet's Leases would move, too.
#[test]
fn an_overlay_with_a_namespace_is_refused() {
    let folder = std::env::temp_dir().join(format!("reattach-namespace-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let up = "../".repeat(folder.components().count());
    let base = deploy()
        .canonicalize()
        .expect("deploy/")
        .join("overlays/linode");
    let overlay = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [\"{up}{}\"]\nnamespace: x\n",
        base.strip_prefix("/").expect("absolute").display()
    );
    std::fs::write(folder.join("kustomization.yaml"), overlay).expect("written");
    let out = Command::new("kubectl")
        .arg("kustomize")
        .arg(&folder)
        .output()
        .expect("kubectl");
    std::fs::remove_dir_all(&folder).expect("removed");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && said.contains("namespace transformation produces ID conflict"),
        "{said}"
    );
}

/// The account of the controller's pods is the one that the policies name, and each policy that names it is known to the
/// controller, which may read it and its binding.
fn bounded(namespace: &str, objects: &[Value]) {
    let pods = one(objects, "Deployment", "reattach-controller");
    let account = text(pods, "/spec/template/spec/serviceAccountName");
    one_of(objects, "ServiceAccount", namespace, account);
    assert_eq!(text(pods, "/metadata/namespace"), namespace);
    let condition =
        format!("request.userInfo.username == 'system:serviceaccount:{namespace}:{account}'");
    let by_the_controller: BTreeSet<&str> = of_kind(objects, "ValidatingAdmissionPolicy")
        .into_iter()
        .filter(|policy| {
            list(policy, "/spec/matchConditions")
                .iter()
                .any(|c| text(c, "/expression").trim() == condition)
        })
        .map(name)
        .collect();
    let known: BTreeSet<&str> = ALWAYS.into_iter().chain(SCALING).collect();
    assert_eq!(by_the_controller, known);
    for policy in &known {
        let conditions = list(
            one(objects, "ValidatingAdmissionPolicy", policy),
            "/spec/matchConditions",
        );
        assert_eq!(
            conditions.len(),
            1,
            "{policy}: the controller takes it for weakened otherwise"
        );
    }
    let rules = list(one(objects, "ClusterRole", "reattach-controller"), "/rules");
    for resource in [
        "validatingadmissionpolicies",
        "validatingadmissionpolicybindings",
    ] {
        let rule = rules
            .iter()
            .find(|rule| list(rule, "/resources").iter().any(|r| r == resource));
        let rule = rule.unwrap_or_else(|| panic!("it may not read {resource}"));
        let names: BTreeSet<&str> = list(rule, "/resourceNames")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(names, known, "{resource}");
    }
}

fn one_of<'a>(objects: &'a [Value], kind: &str, namespace: &str, wanted: &str) -> &'a Value {
    let found = objects.iter().find(|o| {
        o["kind"] == kind && name(o) == wanted && text(o, "/metadata/namespace") == namespace
    });
    found.unwrap_or_else(|| panic!("no {kind} {namespace}/{wanted}"))
}

/// Each pod's policy selects it, and lets in what the pod serves.
#[test]
fn network_policies_let_in_the_metrics_port_only() {
    let linode = render("overlays/linode");
    for (kind, app) in [
        ("Deployment", "reattach-controller"),
        ("DaemonSet", "reattach-agent"),
    ] {
        let policy = one(&linode, "NetworkPolicy", app);
        let template = &one(&linode, kind, app)["spec"]["template"];
        // A NetworkPolicy does not bind pods in the node's network.
        assert_ne!(template["spec"]["hostNetwork"], true, "{app}");
        let selected = policy["spec"]["podSelector"]["matchLabels"]
            .as_object()
            .expect("labels");
        for (label, value) in selected {
            assert_eq!(&template["metadata"]["labels"][label], value, "{app}");
        }
        assert_eq!(
            policy["spec"]["policyTypes"],
            serde_json::json!(["Ingress", "Egress"]),
            "{app}"
        );
        let served = list(container(&linode, kind, app), "/ports")
            .iter()
            .map(|port| &port["name"]);
        let let_in = list(policy, "/spec/ingress")
            .iter()
            .flat_map(|rule| list(rule, "/ports"));
        assert_eq!(
            let_in.map(|port| &port["port"]).collect::<Vec<_>>(),
            served.collect::<Vec<_>>(),
            "{app}"
        );
        for rule in list(policy, "/spec/egress") {
            assert!(!list(rule, "/ports").is_empty(), "{app} may open any port");
        }
    }
}

/// As [`one`], for a role: a Role is looked for in the binding's namespace.
fn one_in<'a>(objects: &'a [Value], kind: &str, wanted: &str, binding: &Value) -> &'a Value {
    let found = objects.iter().find(|o| {
        o["kind"] == kind
            && name(o) == wanted
            && (kind == "ClusterRole"
                || o["metadata"]["namespace"] == binding["metadata"]["namespace"])
    });
    found.unwrap_or_else(|| panic!("no {kind} {wanted}"))
}

/// The agent that the live tests run is built as the one in the image.
#[test]
fn the_agent_is_tested_as_it_is_shipped() {
    let build =
        "cargo build --profile agent --locked --package reattach-agent --bin reattach-agent";
    for file in ["Dockerfile", "../tests/run"] {
        let text = std::fs::read_to_string(deploy().join(file)).expect("a file");
        assert!(
            text.contains(build),
            "{file} builds the agent otherwise than by: {build}"
        );
    }
}

/// The images are those that the Dockerfile makes, and what it copies is there.
#[test]
fn images_and_dockerfile_agree() {
    let dockerfile = std::fs::read_to_string(deploy().join("Dockerfile")).expect("a Dockerfile");
    let lines = |word: &str| -> Vec<Vec<String>> {
        let with = |l: &&str| l.split_whitespace().next() == Some(word);
        let words = |l: &str| l.split_whitespace().skip(1).map(str::to_owned).collect();
        dockerfile.lines().filter(with).map(words).collect()
    };
    let linode = render("overlays/linode");
    for (kind, binary) in [
        ("Deployment", "reattach-controller"),
        ("DaemonSet", "reattach-agent"),
    ] {
        let image = text(container(&linode, kind, binary), "/image");
        let (repository, tag) = image.rsplit_once(':').expect("a tag");
        assert_eq!(repository, format!("ghcr.io/reattach/{binary}"));
        assert_eq!(
            tag,
            env!("CARGO_PKG_VERSION"),
            "newTag in deploy/base/kustomization.yaml"
        );
        let stage = lines("FROM")
            .into_iter()
            .find(|from| from.last().is_some_and(|last| last == binary));
        assert!(stage.is_some(), "no stage for {binary}");
        let entry = lines("ENTRYPOINT").concat().concat();
        assert!(
            entry.contains(&format!("[\"/usr/local/bin/{binary}\"]")),
            "{entry}"
        );
        assert!(
            deploy()
                .join("../src")
                .join(&binary["reattach-".len()..])
                .join("Cargo.toml")
                .is_file()
        );
    }
    let toolchain =
        std::fs::read_to_string(deploy().join("../rust-toolchain.toml")).expect("a toolchain");
    let channel = toolchain
        .lines()
        .find_map(|l| l.strip_prefix("channel = "))
        .expect("a channel")
        .trim_matches('"');
    assert!(
        lines("FROM")
            .iter()
            .any(|from| from[0].starts_with(&format!("rust:{channel}-"))),
        "the Dockerfile builds with another Rust than {channel}"
    );
    for copy in lines("COPY")
        .iter()
        .filter(|copy| !copy[0].starts_with("--from"))
    {
        for source in &copy[..copy.len() - 1] {
            assert!(
                deploy().join("..").join(source).exists(),
                "the Dockerfile copies {source}, which is not there"
            );
        }
    }
}
