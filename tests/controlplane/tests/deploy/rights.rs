//! The rights that RBAC gives, as access reviews by the ServiceAccounts themselves.

use crate::cluster::{Installed, SYSTEM};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, PostParams};

/// Whether the client's user may do this; the resource may have a subresource.
pub async fn may(
    client: &Client,
    group: &str,
    resource: &str,
    verb: &str,
    namespace: Option<&str>,
) -> bool {
    let (resource, subresource) = resource
        .split_once('/')
        .map_or((resource, None), |(r, s)| (r, Some(s)));
    review(
        client,
        ResourceAttributes {
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: subresource.map(str::to_owned),
            verb: Some(verb.to_owned()),
            namespace: namespace.map(str::to_owned),
            ..Default::default()
        },
    )
    .await
}

/// Whether the client's user may approve this recovery of `team-a`.
pub async fn may_approve(client: &Client, recovery: &str) -> bool {
    review(
        client,
        ResourceAttributes {
            group: Some("reattach.dev".to_owned()),
            resource: Some("volumerecoveries".to_owned()),
            verb: Some("approve".to_owned()),
            namespace: Some("team-a".to_owned()),
            name: Some(recovery.to_owned()),
            ..Default::default()
        },
    )
    .await
}

async fn review(client: &Client, attributes: ResourceAttributes) -> bool {
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..Default::default()
    };
    let review = SelfSubjectAccessReview {
        spec,
        ..Default::default()
    };
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let answer = api
        .create(&PostParams::default(), &review)
        .await
        .expect("an answer");
    answer.status.is_some_and(|status| status.allowed)
}

/// Rows of `group resource`, verbs that must be allowed, verbs that must not be; everywhere unless a namespace is given.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    Option<&'static str>,
);

async fn check(who: &str, client: &Client, table: &[Row]) {
    for (group, resource, yes, no, namespace) in table {
        for (verbs, expected) in [(yes, true), (no, false)] {
            for verb in verbs.split_whitespace() {
                let allowed = may(client, group, resource, verb, *namespace).await;
                assert_eq!(
                    allowed, expected,
                    "{who}: {verb} {resource}.{group} in {namespace:?}"
                );
            }
        }
    }
}

const READ: &str = "get list watch";
const WRITE: &str = "create update patch delete deletecollection";

pub async fn of_the_controller(installed: &Installed<'_>) {
    let but_create = "get list watch update patch delete deletecollection";
    let but_patch = "create update delete deletecollection";
    check(
        "controller",
        &installed.controller,
        &[
            (
                "",
                "pods",
                "get list watch create patch delete",
                "update deletecollection",
                None,
            ),
            ("", "pods/eviction", "create", but_create, None),
            ("policy", "poddisruptionbudgets", READ, WRITE, None),
            ("", "pods/status", "", WRITE, None),
            ("", "pods/exec", "", "get create", None),
            ("", "pods/ephemeralcontainers", "", "update patch", None),
            ("", "pods/binding", "", "create", None),
            (
                "",
                "events",
                "get list watch create patch",
                "update delete deletecollection",
                None,
            ),
            (
                "events.k8s.io",
                "events",
                "get list watch create patch",
                "update delete deletecollection",
                None,
            ),
            ("", "nodes", "get list watch patch", but_patch, None),
            ("", "nodes/status", "", "update patch", None),
            ("", "nodes/proxy", "", "get create", None),
            ("", "namespaces", READ, WRITE, None),
            ("", "persistentvolumes", READ, WRITE, None),
            ("", "persistentvolumeclaims", READ, WRITE, None),
            (
                "",
                "secrets",
                "",
                "get list watch create update patch delete",
                None,
            ),
            (
                "",
                "secrets",
                "",
                "get list watch create update patch delete",
                Some(SYSTEM),
            ),
            (
                "",
                "configmaps",
                "",
                "get list watch create update patch delete",
                None,
            ),
            ("", "serviceaccounts", "", "get list impersonate", None),
            ("", "serviceaccounts/token", "", "create", None),
            ("", "users", "", "impersonate", None),
            (
                "storage.k8s.io",
                "volumeattachments",
                "get list watch patch delete",
                "create update deletecollection",
                None,
            ),
            (
                "storage.k8s.io",
                "volumeattachments/status",
                "",
                "update patch",
                None,
            ),
            ("storage.k8s.io", "csinodes", READ, WRITE, None),
            ("storage.k8s.io", "csidrivers", READ, WRITE, None),
            (
                "apps",
                "deployments",
                "get list watch patch update",
                "create delete deletecollection",
                None,
            ),
            (
                "apps",
                "statefulsets",
                "get list watch patch update",
                "create delete deletecollection",
                None,
            ),
            (
                "apps",
                "replicasets",
                "get list watch patch update",
                "create delete deletecollection",
                None,
            ),
            ("apps", "deployments/scale", "get patch update", "", None),
            ("apps", "statefulsets/scale", "get patch update", "", None),
            ("apps", "replicasets/scale", "get patch update", "", None),
            ("apps", "deployments/status", "", "patch update", None),
            ("apps", "daemonsets", "", WRITE, None),
            ("batch", "jobs", "", WRITE, None),
            ("autoscaling", "horizontalpodautoscalers", READ, WRITE, None),
            ("keda.sh", "scaledobjects", "get list", WRITE, None),
            (
                "coordination.k8s.io",
                "leases",
                "get list watch create update patch delete",
                "deletecollection",
                Some(SYSTEM),
            ),
            (
                "coordination.k8s.io",
                "leases",
                READ,
                WRITE,
                Some("kube-node-lease"),
            ),
            (
                "coordination.k8s.io",
                "leases",
                "",
                "get create update",
                Some("kube-system"),
            ),
            (
                "reattach.dev",
                "recoverypolicies",
                READ,
                "create update patch delete deletecollection poweroff",
                None,
            ),
            (
                "reattach.dev",
                "volumerecoveries",
                "get list watch create update patch delete hold",
                "deletecollection approve declare poweroff",
                None,
            ),
            (
                "reattach.dev",
                "volumerecoveries/status",
                "get update patch",
                "",
                None,
            ),
            (
                "reattach.dev",
                "nodevolumereports",
                "get list watch create update patch delete",
                "deletecollection",
                None,
            ),
            (
                "reattach.dev",
                "nodevolumereports/status",
                "",
                "update patch",
                None,
            ),
            (
                "rbac.authorization.k8s.io",
                "clusterroles",
                "",
                "create update patch bind escalate",
                None,
            ),
            (
                "admissionregistration.k8s.io",
                "validatingadmissionpolicies",
                "",
                WRITE,
                None,
            ),
            (
                "admissionregistration.k8s.io",
                "mutatingadmissionpolicies",
                "",
                WRITE,
                None,
            ),
            (
                "apiextensions.k8s.io",
                "customresourcedefinitions",
                "",
                WRITE,
                None,
            ),
            (
                "authorization.k8s.io",
                "selfsubjectaccessreviews",
                "create",
                "",
                None,
            ),
            (
                "authorization.k8s.io",
                "subjectaccessreviews",
                "create",
                "",
                None,
            ),
        ],
    )
    .await;
}

pub async fn of_the_agent(installed: &Installed<'_>) {
    let agent = installed.as_agent_of("node-a").await;
    check(
        "agent",
        &agent,
        &[
            (
                "reattach.dev",
                "nodevolumereports",
                "get list watch create",
                "update patch delete deletecollection",
                None,
            ),
            (
                "reattach.dev",
                "nodevolumereports/status",
                "update patch",
                "",
                None,
            ),
            (
                "reattach.dev",
                "volumerecoveries",
                "",
                "get list create update patch delete",
                None,
            ),
            (
                "reattach.dev",
                "recoverypolicies",
                "",
                "get list create update patch delete",
                None,
            ),
            (
                "",
                "nodes",
                "",
                "get list watch create update patch delete",
                None,
            ),
            (
                "",
                "pods",
                "",
                "get list watch create update patch delete",
                None,
            ),
            ("", "secrets", "", "get list watch", None),
            ("", "secrets", "", "get list watch", Some(SYSTEM)),
            (
                "storage.k8s.io",
                "volumeattachments",
                "",
                "get list patch delete",
                None,
            ),
            (
                "coordination.k8s.io",
                "leases",
                "",
                "get create update",
                Some(SYSTEM),
            ),
            ("", "events", "", "create", None),
        ],
    )
    .await;
}

/// The built-in roles have taken ours in, and no more.
pub async fn of_people(installed: &Installed<'_>) {
    let (here, there) = (Some("team-a"), Some("team-b"));
    let vr = "volumerecoveries";
    for (who, yes, no) in [
        (
            "vera",
            READ,
            "create patch update delete approve hold declare poweroff",
        ),
        (
            "alice",
            "get list watch create patch",
            "update delete approve hold declare poweroff",
        ),
        (
            "erin",
            "get list watch create patch",
            "update delete approve hold declare poweroff",
        ),
        (
            "olga",
            "get list watch create patch approve",
            "update delete hold declare poweroff",
        ),
        (
            "adam",
            "get list watch create patch approve",
            "update delete hold declare poweroff",
        ),
        (
            "dora",
            "get list watch create patch declare poweroff",
            "update delete hold approve",
        ),
        (
            "dana",
            "get list watch create patch declare",
            "update delete hold approve poweroff",
        ),
    ] {
        let client = installed.as_user(who).await;
        check(
            who,
            &client,
            &[
                ("reattach.dev", vr, yes, no, here),
                (
                    "reattach.dev",
                    vr,
                    "",
                    "get create patch approve declare poweroff",
                    there,
                ),
                (
                    "reattach.dev",
                    "volumerecoveries/status",
                    "",
                    "update patch",
                    here,
                ),
                (
                    "reattach.dev",
                    "recoverypolicies",
                    "",
                    "create update patch delete deletecollection poweroff",
                    None,
                ),
                ("reattach.dev", "nodevolumereports", "", WRITE, None),
                (
                    "reattach.dev",
                    "nodevolumereports/status",
                    "",
                    "update patch",
                    None,
                ),
            ],
        )
        .await;
    }
}
