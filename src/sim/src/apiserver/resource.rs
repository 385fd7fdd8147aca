//! The table of served resources.

use std::sync::Arc;

use serde_json::Value;

/// Where a resource's `scale` subresource finds its numbers (JSON pointers).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ScalePaths {
    /// Desired replicas, e.g. `/spec/replicas`.
    pub spec: String,
    /// Observed replicas, e.g. `/status/replicas`.
    pub status: String,
    /// The label selector: an object with `matchLabels`, or a string.
    pub selector: Option<String>,
}

/// One served resource (one version of it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResourceType {
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural name as in paths.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether `status` is a subresource.
    pub status: bool,
    /// Whether and how `scale` is a subresource.
    pub scale: Option<ScalePaths>,
    /// Whether it is a custom resource.
    pub custom: bool,
    /// A custom resource's OpenAPI schema; only its `default`s are used.
    pub schema: Option<Arc<Value>>,
}

impl ResourceType {
    /// `group/version`, or `version` in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `plural.group`, as error texts name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// `Kind.group`, as validation errors name it.
    pub fn kind_qualified(&self) -> String {
        if self.group.is_empty() {
            self.kind.clone()
        } else {
            format!("{}.{}", self.kind, self.group)
        }
    }

    /// Where objects are stored: both kinds of Event share one place.
    pub fn store(&self) -> StoreId {
        let group = if self.is_new_event() {
            String::new()
        } else {
            self.group.clone()
        };
        (group, self.plural.clone())
    }

    /// `events.k8s.io/v1`.
    pub fn is_new_event(&self) -> bool {
        self.group == "events.k8s.io" && self.plural == "events"
    }

    /// Whether this is `group`/`plural`.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// A core pod.
    pub fn is_pod(&self) -> bool {
        self.is("", "pods")
    }
}

/// Group and plural name under which objects are stored.
pub(super) type StoreId = (String, String);

/// Flags in the built-in table: namespaced, status, scale.
const N: u8 = 1;
const S: u8 = 2;
const X: u8 = 4;

const BUILT_IN: &[(&str, &str, &str, &str, u8)] = &[
    ("", "v1", "pods", "Pod", N | S),
    ("", "v1", "nodes", "Node", S),
    ("", "v1", "persistentvolumes", "PersistentVolume", S),
    (
        "",
        "v1",
        "persistentvolumeclaims",
        "PersistentVolumeClaim",
        N | S,
    ),
    ("", "v1", "events", "Event", N),
    ("", "v1", "namespaces", "Namespace", S),
    ("", "v1", "secrets", "Secret", N),
    ("", "v1", "configmaps", "ConfigMap", N),
    ("", "v1", "services", "Service", N | S),
    ("", "v1", "serviceaccounts", "ServiceAccount", N),
    (
        "",
        "v1",
        "replicationcontrollers",
        "ReplicationController",
        N | S | X,
    ),
    ("", "v1", "resourcequotas", "ResourceQuota", N | S),
    ("events.k8s.io", "v1", "events", "Event", N),
    ("apps", "v1", "deployments", "Deployment", N | S | X),
    ("apps", "v1", "statefulsets", "StatefulSet", N | S | X),
    ("apps", "v1", "replicasets", "ReplicaSet", N | S | X),
    ("apps", "v1", "daemonsets", "DaemonSet", N | S),
    ("apps", "v1", "controllerrevisions", "ControllerRevision", N),
    ("batch", "v1", "jobs", "Job", N | S),
    ("batch", "v1", "cronjobs", "CronJob", N | S),
    (
        "autoscaling",
        "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler",
        N | S,
    ),
    (
        "policy",
        "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget",
        N | S,
    ),
    (
        "storage.k8s.io",
        "v1",
        "volumeattachments",
        "VolumeAttachment",
        S,
    ),
    ("storage.k8s.io", "v1", "storageclasses", "StorageClass", 0),
    ("storage.k8s.io", "v1", "csinodes", "CSINode", 0),
    ("storage.k8s.io", "v1", "csidrivers", "CSIDriver", 0),
    ("coordination.k8s.io", "v1", "leases", "Lease", N),
    (
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        S,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        0,
    ),
    (
        "authorization.k8s.io",
        "v1",
        "subjectaccessreviews",
        "SubjectAccessReview",
        0,
    ),
    (
        "authentication.k8s.io",
        "v1",
        "selfsubjectreviews",
        "SelfSubjectReview",
        0,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingwebhookconfigurations",
        "ValidatingWebhookConfiguration",
        0,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingwebhookconfigurations",
        "MutatingWebhookConfiguration",
        0,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        S,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        0,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicies",
        "MutatingAdmissionPolicy",
        0,
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        "mutatingadmissionpolicybindings",
        "MutatingAdmissionPolicyBinding",
        0,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterroles",
        "ClusterRole",
        0,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        "ClusterRoleBinding",
        0,
    ),
    ("rbac.authorization.k8s.io", "v1", "roles", "Role", N),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "rolebindings",
        "RoleBinding",
        N,
    ),
];

/// The resources that are served from the start.
pub(super) fn built_in() -> Vec<ResourceType> {
    BUILT_IN
        .iter()
        .map(|(group, version, plural, kind, flags)| ResourceType {
            group: (*group).into(),
            version: (*version).into(),
            plural: (*plural).into(),
            kind: (*kind).into(),
            namespaced: flags & N != 0,
            status: flags & S != 0,
            scale: (flags & X != 0).then(|| ScalePaths {
                spec: "/spec/replicas".into(),
                status: "/status/replicas".into(),
                selector: Some("/spec/selector".into()),
            }),
            custom: false,
            schema: None,
        })
        .collect()
}

/// The served versions that a CustomResourceDefinition describes; empty if it names no kind.
pub(super) fn from_crd(crd: &Value) -> Vec<ResourceType> {
    let text = |p: &str| {
        crd.pointer(p)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (group, plural, kind) = (
        text("/spec/group"),
        text("/spec/names/plural"),
        text("/spec/names/kind"),
    );
    if group.is_empty() || plural.is_empty() || kind.is_empty() {
        return Vec::new();
    }
    let versions = crd
        .pointer("/spec/versions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    versions
        .iter()
        .filter(|v| v["served"].as_bool() != Some(false))
        .map(|v| ResourceType {
            group: group.clone(),
            version: v["name"].as_str().unwrap_or_default().into(),
            plural: plural.clone(),
            kind: kind.clone(),
            namespaced: text("/spec/scope") == "Namespaced",
            status: v.pointer("/subresources/status").is_some(),
            scale: v.pointer("/subresources/scale").map(|s| ScalePaths {
                spec: dotted(&s["specReplicasPath"]).unwrap_or_else(|| "/spec/replicas".into()),
                status: dotted(&s["statusReplicasPath"])
                    .unwrap_or_else(|| "/status/replicas".into()),
                selector: dotted(&s["labelSelectorPath"]),
            }),
            custom: true,
            schema: v.pointer("/schema/openAPIV3Schema").cloned().map(Arc::new),
        })
        .collect()
}

/// `.spec.replicas` as `/spec/replicas`.
fn dotted(path: &Value) -> Option<String> {
    path.as_str().map(|p| p.replace('.', "/"))
}
