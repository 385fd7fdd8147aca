//! The overlay, applied.

use crate::rendered::{list, name, of_kind, one, render, text};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::params::ValidationDirective;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, ResourceExt};
use reattach_tests_controlplane::{ControlPlane, eventually};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);
pub const SYSTEM: &str = "reattach-system";
pub const CONTROLLER: &str = "system:serviceaccount:reattach-system:reattach-controller";

/// A cluster with the Linode overlay, two nodes and some people.
pub struct Installed<'a> {
    pub plane: &'a ControlPlane,
    pub admin: Client,
    /// The controller's ServiceAccount.
    pub controller: Client,
    objects: Vec<Value>,
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of that kind")
}

pub async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &object(value))
        .await
        .expect("created")
}

/// The API server's refusal: code and message.
pub fn refusal<T: std::fmt::Debug>(what: &str, answer: kube::Result<T>) -> (u16, String) {
    match answer {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("{what} was not refused: {other:?}"),
    }
}

/// Asserts a refusal with that code whose message holds that text.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(what: &str, answer: kube::Result<T>, code: u16, says: &str) {
    let (found, message) = refusal(what, answer);
    assert!(
        found == code && message.contains(says),
        "{what}: {found} {message}\nexpected {code} {says}"
    );
}

fn strict() -> PatchParams {
    let mut params = PatchParams::apply("deploy-test").force();
    params.field_validation = Some(ValidationDirective::Strict);
    params
}

/// Server-side apply of any object.
async fn apply(client: &Client, object: &Value) -> kube::Result<DynamicObject> {
    let (group, version) = text(object, "/apiVersion")
        .split_once('/')
        .unwrap_or(("", text(object, "/apiVersion")));
    let kind = GroupVersionKind::gvk(group, version, text(object, "/kind"));
    let (resource, capabilities) = pinned_kind(client, &kind).await?;
    let namespace = text(object, "/metadata/namespace");
    let api: Api<DynamicObject> = match capabilities.scope {
        Scope::Namespaced => {
            assert!(
                !namespace.is_empty(),
                "{} {} has no namespace",
                kind.kind,
                name(object)
            );
            Api::namespaced_with(client.clone(), namespace, &resource)
        }
        Scope::Cluster => {
            assert!(
                namespace.is_empty(),
                "{} {} has a namespace",
                kind.kind,
                name(object)
            );
            Api::all_with(client.clone(), &resource)
        }
    };
    api.patch(name(object), &strict(), &Patch::Apply(object))
        .await
}

/// A Node that the scheduler accepts.
fn ready_node(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" } },
        "status": {
            "capacity": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    })
}

impl<'a> Installed<'a> {
    /// Applies the definitions, waits for them, and applies the rest: docs/install.md.
    pub async fn install(plane: &'a ControlPlane) -> Self {
        let admin = plane.admin_client();
        for crd in render("crds") {
            apply(&admin, &crd)
                .await
                .unwrap_or_else(|e| panic!("CRD {}: {e}", name(&crd)));
        }
        let crds = Api::<CustomResourceDefinition>::all(admin.clone());
        for crd in render("crds") {
            let established = async || {
                let status = crds.get(name(&crd)).await.ok()?.status?;
                let conditions = status.conditions.unwrap_or_default();
                conditions
                    .iter()
                    .find(|c| c.type_ == "Established" && c.status == "True")
                    .map(|_| ())
            };
            eventually(&format!("established {}", name(&crd)), LIMIT, established)
                .await
                .expect("in time");
        }
        let objects = render("overlays/linode");
        // Made by the API server itself, a moment after its start.
        let namespaces = Api::<Namespace>::all(admin.clone());
        eventually("kube-node-lease", LIMIT, async || {
            namespaces.get("kube-node-lease").await.ok()
        })
        .await
        .expect("there");
        for o in &objects {
            apply(&admin, o)
                .await
                .unwrap_or_else(|e| panic!("{} {}: {e}", text(o, "/kind"), name(o)));
        }
        for node in ["node-a", "node-b"] {
            create(&Api::<Node>::all(admin.clone()), ready_node(node)).await;
        }
        for namespace in ["team-a", "team-b"] {
            create(&namespaces, json!({ "metadata": { "name": namespace } })).await;
            plane
                .await_namespace(namespace)
                .await
                .expect("its ServiceAccount");
        }
        let file = plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-controller", None)
            .await;
        let controller = plane
            .client_from(&file.expect("a kubeconfig"))
            .await
            .expect("a client");
        let installed = Self {
            plane,
            admin,
            controller,
            objects,
        };
        installed.people().await;
        installed
    }

    /// The users and their rights, all by the roles in `deploy/` or the built-in roles that these are added to.
    async fn people(&self) {
        for (who, role, namespace) in [
            ("alice", "reattach-operator", "team-a"),
            ("olga", "reattach-operator", "team-a"),
            ("olga", "reattach-approver", "team-a"),
            // Approves, but elsewhere.
            ("paul", "reattach-operator", "team-a"),
            ("paul", "reattach-approver", "team-b"),
            ("vera", "view", "team-a"),
            ("erin", "edit", "team-a"),
            ("adam", "admin", "team-a"),
            ("dora", "reattach-operator", "team-a"),
            ("dora", "reattach-declarer", "team-a"),
            ("dora", "reattach-power-off", "team-a"),
            ("dana", "reattach-operator", "team-a"),
            ("dana", "reattach-declarer", "team-a"),
            // Both, but elsewhere.
            ("pat", "reattach-operator", "team-a"),
            ("pat", "reattach-declarer", "team-b"),
            ("pat", "reattach-power-off", "team-b"),
        ] {
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": { "name": format!("{who}-{role}"), "namespace": namespace },
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
                "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": who }],
            });
            apply(&self.admin, &binding).await.expect("bound");
        }
    }

    /// Gives a user the verb `approve` on one recovery of `team-a`, and returns when it is in force.
    pub async fn allow_to_approve(&self, who: &str, recovery: &str) {
        let (api, group) = ("rbac.authorization.k8s.io/v1", "rbac.authorization.k8s.io");
        let metadata = json!({ "name": format!("approve-{recovery}"), "namespace": "team-a" });
        let role = json!({
            "apiVersion": api, "kind": "Role", "metadata": metadata,
            "rules": [{
                "apiGroups": ["reattach.dev"], "resources": ["volumerecoveries"], "resourceNames": [recovery],
                "verbs": ["approve"],
            }],
        });
        let binding = json!({
            "apiVersion": api, "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": group, "kind": "Role", "name": format!("approve-{recovery}") },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": who }],
        });
        for object in [role, binding] {
            apply(&self.admin, &object).await.expect("applied");
        }
        let client = self.as_user(who).await;
        let granted = async || {
            crate::rights::may_approve(&client, recovery)
                .await
                .then_some(())
        };
        eventually("right on one recovery", LIMIT, granted)
            .await
            .expect("granted");
    }

    /// Applies any object.
    pub async fn apply(&self, object: &Value) -> DynamicObject {
        apply(&self.admin, object).await.expect("applied")
    }

    /// A client of one of the people.
    pub async fn as_user(&self, who: &str) -> Client {
        let file = self.plane.kubeconfig_for(who).expect("a kubeconfig");
        self.plane.client_from(&file).await.expect("a client")
    }

    /// The controller's ServiceAccount, each request once: the stock client repeats a 429 for minutes.
    pub async fn controller_once(&self) -> Client {
        let file = self
            .plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-controller", None)
            .await;
        let file =
            kube::config::Kubeconfig::read_from(file.expect("a kubeconfig")).expect("readable");
        let config = kube::Config::from_custom_kubeconfig(file, &Default::default()).await;
        let mut config = config.expect("a configuration");
        config.default_retry = false;
        Client::try_from(config).expect("a client")
    }

    /// A client with the token that the agent's pod on that node has.
    pub async fn as_agent_of(&self, node: &str) -> Client {
        let pod = self
            .pods("reattach-agent")
            .await
            .remove(node)
            .expect("an agent on that node");
        let file = self
            .plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-agent", Some(&pod))
            .await
            .expect("a kubeconfig");
        self.plane.client_from(&file).await.expect("a client")
    }

    /// The pods of one of our workloads, by the node that the scheduler gave them.
    async fn pods(&self, app: &str) -> BTreeMap<String, String> {
        let pods = Api::<Pod>::namespaced(self.admin.clone(), SYSTEM);
        let list = pods
            .list(&ListParams::default().labels(&format!("app.kubernetes.io/name={app}")))
            .await;
        let placed = |pod: &Pod| Some((pod.spec.as_ref()?.node_name.clone()?, pod.name_any()));
        list.expect("pods").iter().filter_map(placed).collect()
    }

    /// The pod template of a workload, as a pod.
    pub fn pod_of(&self, kind: &str, workload: &str) -> Value {
        let mut pod = one(&self.objects, kind, workload)["spec"]["template"].clone();
        pod["metadata"]["name"] = workload.into();
        pod
    }

    /// The controllers of the cluster have seen the policies and roles; no policy has an expression that cannot hold.
    pub async fn settles(&self) {
        let kind = GroupVersionKind::gvk(
            "admissionregistration.k8s.io",
            "v1",
            "ValidatingAdmissionPolicy",
        );
        let policies: Api<DynamicObject> = Api::all_with(
            self.admin.clone(),
            &ApiResource::from_gvk_with_plural(&kind, "validatingadmissionpolicies"),
        );
        for policy in of_kind(&self.objects, "ValidatingAdmissionPolicy") {
            let checked = async || {
                let found = policies.get(name(policy)).await.ok()?;
                let current = found.data["status"]["observedGeneration"].as_i64()
                    == found.metadata.generation;
                current.then(|| found.data["status"].clone())
            };
            let status = eventually("type check", LIMIT, checked)
                .await
                .expect("checked");
            assert_eq!(
                list(&status, "/typeChecking/expressionWarnings"),
                &[] as &[Value],
                "{}",
                name(policy)
            );
        }
        // Requests of the controller have their own share of the API server.
        let schemas = Api::<FlowSchema>::all(self.admin.clone());
        let dangling = async || {
            let conditions = schemas
                .get("reattach-controller")
                .await
                .ok()?
                .status?
                .conditions?;
            conditions
                .into_iter()
                .find(|c| c.type_.as_deref() == Some("Dangling"))?
                .status
        };
        assert_eq!(
            eventually("condition Dangling", LIMIT, dangling)
                .await
                .expect("known"),
            "False"
        );
        // The last binding that was made, and the built-in roles that take ours in.
        for (who, verb) in [
            ("adam", "approve"),
            ("erin", "create"),
            ("vera", "list"),
            ("olga", "approve"),
            ("dora", "poweroff"),
            ("dana", "declare"),
        ] {
            let client = self.as_user(who).await;
            let may = async || {
                crate::rights::may(
                    &client,
                    "reattach.dev",
                    "volumerecoveries",
                    verb,
                    Some("team-a"),
                )
                .await
                .then_some(())
            };
            eventually(&format!("right of {who} to {verb}"), LIMIT, may)
                .await
                .expect("granted");
        }
    }

    /// Defaults of the API server do not conflict with applied fields.
    pub async fn a_second_apply_changes_nothing(&self) {
        for o in &self.objects {
            let what = format!("{} {}", text(o, "/kind"), name(o));
            let first = apply(&self.admin, o)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            let second = apply(&self.admin, o)
                .await
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(
                first.metadata.generation, second.metadata.generation,
                "{what}"
            );
            // Its status moves by itself, hence the spec alone.
            assert_eq!(first.data.get("spec"), second.data.get("spec"), "{what}");
            // A Deployment or a policy that was applied twice has one generation.
            assert!(
                second.metadata.generation.is_none_or(|g| g == 1),
                "{what}: {:?}",
                second.metadata.generation
            );
        }
    }

    /// The other way round: a field that does not exist is found, in a stock kind and in ours.
    pub async fn strict_validation_is_in_force(&self) {
        let mut deployment = one(&self.objects, "Deployment", "reattach-controller").clone();
        deployment["spec"]["template"]["spec"]["containers"][0]["lifenessProbe"] = json!({});
        let mut policy = one(&self.objects, "RecoveryPolicy", "default").clone();
        policy["spec"]["moode"] = "Auto".into();
        for (object, field) in [
            (deployment, ".lifenessProbe: field not declared"),
            (policy, ".spec.moode: field not declared"),
        ] {
            // Whatever the code: server-side apply answers 500.
            let (_, message) = refusal(field, apply(&self.admin, &object).await);
            assert!(message.contains(field), "{message}");
        }
    }

    /// The workload controllers and the scheduler get through: quota, Pod Security, priority, affinity, tolerations.
    pub async fn pods_are_admitted_and_placed(&self) {
        let both = BTreeSet::from(["node-a".to_owned(), "node-b".to_owned()]);
        for app in ["reattach-controller", "reattach-agent"] {
            let placed = async || {
                let nodes: BTreeSet<String> = self.pods(app).await.into_keys().collect();
                (nodes == both).then_some(())
            };
            eventually(&format!("{app} on each node"), LIMIT, placed)
                .await
                .expect("placed");
        }
        // Pod Security: the controller meets the strictest level; the agent cannot, which is why the namespace says so.
        let labels = json!({ "pod-security.kubernetes.io/enforce": "restricted" });
        let namespaces = Api::<Namespace>::all(self.admin.clone());
        create(
            &namespaces,
            json!({ "metadata": { "name": "strict", "labels": labels } }),
        )
        .await;
        self.plane
            .await_namespace("strict")
            .await
            .expect("its ServiceAccount");
        let pods = Api::<Pod>::namespaced(self.admin.clone(), "strict");
        let dry = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let pod = |kind: &str, workload: &str| -> Pod {
            let mut pod = self.pod_of(kind, workload);
            pod["spec"]["serviceAccountName"] = "default".into();
            object(pod)
        };
        pods.create(&dry, &pod("Deployment", "reattach-controller"))
            .await
            .expect("restricted enough");
        let agent = pods.create(&dry, &pod("DaemonSet", "reattach-agent")).await;
        refused(
            "the agent in a restricted namespace",
            agent,
            403,
            "must not include \"DAC_READ_SEARCH\", \"SETGID\", \"SETUID\", \"SYS_PTRACE\"",
        );
    }
}
