//! Asking the API server what it would do with one more pod of a workload.

use crate::effects::hold::is_gated;
use crate::workloads::{api_resource, parse, template_of};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodSpec, Volume};
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::core::Status;
use kube::{Api, Client, ResourceExt};
use reattach_core::ids::ObjectName;
use reattach_core::workload::{PodRefusal, WorkloadRef};

/// What the API server would do with one more pod of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRun {
    /// Whether it would accept it, or why not.
    pub accepted: Result<(), PodRefusal>,
    /// Whether the pod would be given our scheduling gate. `None`: there would be no pod.
    pub held: Option<bool>,
}

impl DryRun {
    fn refused(why: String, no_right: bool) -> Self {
        Self {
            accepted: Err(PodRefusal { why, no_right }),
            held: None,
        }
    }
}

/// Asks the API server whether it would accept one more pod of the workload with the claim now (quota, admission, service
/// account), and whether admission would hold it away. Nothing is created: the request carries `dryRun=All`.
///
/// # Errors
/// The request got no definite answer.
pub async fn pod(
    records: &Client,
    read: &Client,
    w: &WorkloadRef,
    claim: &ObjectName,
) -> Result<DryRun, kube::Error> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(read.clone(), &w.name.namespace, &api_resource(w));
    let object = api.get_opt(&w.name.name).await?;
    let with_template = object.and_then(|o| Some((template_of(&o)?, o)));
    let Some((mut template, object)) = with_template else {
        return Ok(DryRun::refused("it has no pod template".to_owned(), false));
    };
    if w.kind == "StatefulSet"
        && let Some(set) = parse(&object)
        && let Some(spec) = &mut template.spec
    {
        add_claims(&set, &claim.name, spec);
    }
    let metadata = template.metadata.unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-dry-run-", w.name.name)),
            labels: metadata.labels,
            annotations: metadata.annotations,
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    };
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    match Api::<Pod>::namespaced(records.clone(), &w.name.namespace)
        .create(&params, &pod)
        .await
    {
        Ok(made) => Ok(DryRun {
            accepted: Ok(()),
            held: Some(is_gated(&made)),
        }),
        Err(kube::Error::Api(s)) if s.code < 500 && s.code != 429 => {
            Ok(DryRun::refused(s.message.clone(), is_unauthorized(&s)))
        }
        Err(error) => Err(error),
    }
}

/// Whether authorization refused a create, and not admission. Both answer 403 with the reason Forbidden and details of the
/// resource. Authorization does not know the object, so its details have no name (`ForbiddenStatusError` in
/// `k8s.io/apiserver/pkg/endpoints/handlers/responsewriters/errors.go`). Admission names the object, its generateName or
/// "Unknown" (`extractResourceName` in `k8s.io/apiserver/pkg/admission/errors.go`), and a webhook's answer has no details
/// of the API server.
fn is_unauthorized(status: &Status) -> bool {
    let details = status.details.as_ref();
    status.reason == "Forbidden" && details.is_some_and(|d| d.name.is_empty() && d.kind == "pods")
}

/// Gives a pod spec the volumes that the StatefulSet's controller makes of the claim templates; they replace volumes of
/// the same name (Kubernetes `pkg/controller/statefulset/stateful_set_utils.go`, `updateStorage`). The pod is the one that
/// `claim` belongs to, or the first.
fn add_claims(set: &StatefulSet, claim: &str, spec: &mut PodSpec) {
    let first = set
        .spec
        .as_ref()
        .and_then(|s| s.ordinals.as_ref())
        .and_then(|o| o.start)
        .unwrap_or(0);
    let names: Vec<String> = set
        .spec
        .iter()
        .flat_map(|s| s.volume_claim_templates.iter().flatten())
        .map(ResourceExt::name_any)
        .collect();
    let ordinal = names
        .iter()
        .find_map(|name| {
            claim
                .strip_prefix(&format!("{name}-{}-", set.name_any()))?
                .parse::<i32>()
                .ok()
        })
        .unwrap_or(first);
    let volumes = spec.volumes.get_or_insert_default();
    for name in names {
        let claim_name = format!("{name}-{}-{ordinal}", set.name_any());
        volumes.retain(|v| v.name != name);
        volumes.push(Volume {
            name,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name,
                ..Default::default()
            }),
            ..Volume::default()
        });
    }
}
