//! Finding workloads that carry a stamp, without a recovery that leads to them, and what they show of their past.
//!
//! # Assumptions
//! What a workload shows of its past, by the sources of Kubernetes 1.36:
//! - A StatefulSet keeps the claims that it made when it is scaled to zero (reattach scales none whose retention policy
//!   deletes them): each ordinal below the count has a claim of each template.
//! - A Deployment's ReplicaSets carry the count that was wanted when the Deployment controller last scaled them
//!   (`deployment.kubernetes.io/desired-replicas`). The ReplicaSet that was scaled to zero last carries 0; those of earlier
//!   revisions keep their count.
//! - A HorizontalPodAutoscaler that aims at the workload says how many it may have. Its status tells nothing: it follows the
//!   zero.
//! - `metadata.managedFields` names the last writer of each field. A writer names itself, so this is a sign and no proof.

use crate::names::controller_of;
use crate::workloads::{replicas_of, scaling_spec};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt};
use reattach_api::metadata;
use reattach_core::ids::{ObjectName, ResourceVersion};
use reattach_core::stamp::{MOST_RESTORED, STAMP_ANNOTATION, Shown, Stamp, Traces};
use reattach_core::workload::WorkloadRef;
use serde_json::Value;

/// How many objects one page of a list has, as in kubectl.
const PAGE: u32 = 500;

/// The programs of reattach that scale workloads; their version follows a slash.
const OUR_MANAGERS: [&str; 2] = ["reattach-controller", "kubectl-reattach"];

/// The count that a Deployment had when its controller last scaled this ReplicaSet.
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";

/// A workload with the annotation of a stamp, as its metadata shows it. Copies are left out: they name another object's UID,
/// or stand on a ReplicaSet of a Deployment, whose controller copies annotations.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    /// Which.
    pub workload: WorkloadRef,
    /// What the stamp says; an annotation that is no stamp is an error, one sentence.
    pub stamp: Result<Stamp, String>,
    /// Whether reattach wrote what it shows.
    pub written: Written,
}

/// What reattach wrote last, by `metadata.managedFields`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The stamp, as it is.
    pub stamp: bool,
    /// `spec.replicas`, as it is.
    pub replicas: bool,
}

/// A workload with an intact stamp of its own, as it was read whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped {
    /// Which.
    pub workload: WorkloadRef,
    /// The version that was read.
    pub resource_version: ResourceVersion,
    /// `spec.replicas`.
    pub replicas: i32,
    /// What the stamp says.
    pub stamp: Stamp,
    /// Whether reattach wrote what it shows.
    pub written: Written,
    /// The claims that its template names.
    named_claims: Vec<String>,
    /// The names of a StatefulSet's claim templates.
    claim_templates: Vec<String>,
    /// The ordinal of a StatefulSet's first pod.
    first_ordinal: i64,
}

/// Every Deployment, StatefulSet and ReplicaSet of the cluster with the annotation of a stamp. Only metadata is read.
///
/// # Caveats
/// Other kinds with `/scale` are not looked through: their recovery's finalizer is what leads to them.
///
/// # Errors
/// The first read that failed.
pub async fn find(client: &Client) -> Result<Vec<Marked>, kube::Error> {
    let mut found = Vec::new();
    for kind in kinds() {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = api.list_metadata(&params).await?;
            found.extend(
                page.items
                    .iter()
                    .filter_map(|object| marked(&kind, &object.metadata)),
            );
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
    }
    Ok(found)
}

fn kinds() -> [ApiResource; 3] {
    [
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<ReplicaSet>(&()),
    ]
}

fn marked(kind: &ApiResource, meta: &ObjectMeta) -> Option<Marked> {
    let stamp = Stamp::from_annotation(meta.annotations.as_ref()?.get(STAMP_ANNOTATION)?);
    let uid = metadata::of_kind(&kind.kind, meta).uid().ok()?;
    let is_copy = match &stamp {
        Ok(stamp) => stamp.workload != uid,
        Err(_) => meta
            .owner_references
            .iter()
            .flatten()
            .any(|o| o.kind == "Deployment"),
    };
    if is_copy {
        return None;
    }
    let name = metadata::of_kind(&kind.kind, meta).object_name().ok()?;
    Some(Marked {
        workload: WorkloadRef {
            api_version: kind.api_version.clone(),
            kind: kind.kind.clone(),
            plural: kind.plural.clone(),
            name,
            uid,
        },
        stamp,
        written: written(meta),
    })
}

/// Which fields reattach wrote last.
fn written(meta: &ObjectMeta) -> Written {
    let ours = |manager: &str| {
        OUR_MANAGERS.iter().any(|ours| {
            manager
                .strip_prefix(ours)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let annotation = format!("f:{STAMP_ANNOTATION}");
    let mut written = Written::default();
    for entry in meta
        .managed_fields
        .iter()
        .flatten()
        .filter(|e| e.manager.as_deref().is_some_and(ours))
    {
        let Some(fields) = entry.fields_v1.as_ref().map(|f| &f.0) else {
            continue;
        };
        let has = |path: &[&str]| {
            path.iter()
                .try_fold(fields, |at, key| at.get(key))
                .is_some()
        };
        written.stamp |= has(&["f:metadata", "f:annotations", &annotation]);
        written.replicas |= has(&["f:spec", "f:replicas"]);
    }
    written
}

/// Reads a marked workload whole. `None`: it is gone, or its stamp is.
///
/// # Errors
/// The read failed.
pub async fn read(client: &Client, marked: &Marked) -> Result<Option<Stamped>, kube::Error> {
    let Some(kind) = kinds().into_iter().find(|k| k.kind == marked.workload.kind) else {
        return Ok(None);
    };
    let name = &marked.workload.name;
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, &kind);
    Ok(api
        .get_opt(&name.name)
        .await?
        .and_then(|object| stamped(&kind, &object)))
}

fn stamped(kind: &ApiResource, object: &DynamicObject) -> Option<Stamped> {
    let Marked {
        workload,
        stamp,
        written,
    } = marked(kind, &object.metadata)?;
    let resource_version = match metadata::of_kind(&kind.kind, &object.metadata).version() {
        Ok(version) => version,
        Err(error) => {
            tracing::warn!(%workload, %error, "a stamped workload is left out");
            return None;
        }
    };
    let names = |pointer: &str, name: &str| -> Vec<String> {
        let list = object.data.pointer(pointer).and_then(Value::as_array);
        let names = list
            .into_iter()
            .flatten()
            .filter_map(|v| v.pointer(name)?.as_str());
        names.map(str::to_owned).collect()
    };
    let first_ordinal = object.data.pointer("/spec/ordinals/start");
    Some(Stamped {
        workload,
        resource_version,
        replicas: replicas_of(object),
        stamp: stamp.ok()?,
        written,
        named_claims: names(
            "/spec/template/spec/volumes",
            "/persistentVolumeClaim/claimName",
        ),
        claim_templates: names("/spec/volumeClaimTemplates", "/metadata/name"),
        first_ordinal: first_ordinal.and_then(Value::as_i64).unwrap_or(0),
    })
}

impl Stamped {
    /// The claims that so many of its pods use: those that the template names, and those that a StatefulSet makes for each
    /// pod. At most those of [`MOST_RESTORED`] pods: a count may come from an annotation.
    pub fn claims(&self, pods: i32) -> Vec<ObjectName> {
        let named = self.named_claims.iter().map(|name| self.claim(name));
        let made = (0..pods.min(MOST_RESTORED)).flat_map(|number| self.claims_of(number));
        named.chain(made).collect()
    }

    /// The claims that a StatefulSet makes for one of its pods, counted from its first.
    fn claims_of(&self, number: i32) -> impl Iterator<Item = ObjectName> {
        let ordinal = self.first_ordinal.saturating_add(number.into());
        let set = &self.workload.name.name;
        self.claim_templates
            .iter()
            .map(move |template| self.claim(&format!("{template}-{set}-{ordinal}")))
    }

    fn claim(&self, name: &str) -> ObjectName {
        ObjectName::new(self.workload.name.namespace.as_str(), name)
    }

    /// What it shows of its past.
    ///
    /// # Errors
    /// The first read that failed: nothing is concluded from what could not be read.
    pub async fn traces(&self, client: &Client) -> Result<Traces, kube::Error> {
        let written_by_us = self.written.stamp || self.written.replicas && self.replicas == 0;
        if !written_by_us {
            return Ok(Traces {
                written_by_us,
                past: None,
            });
        }
        let own = match self.workload.kind.as_str() {
            "StatefulSet" => self.by_claims(client).await?,
            "Deployment" => self.by_replica_sets(client).await?,
            _ => None,
        };
        let past = own
            .into_iter()
            .chain(self.by_autoscalers(client).await?)
            .max_by_key(|s| s.replicas);
        Ok(Traces {
            written_by_us,
            past,
        })
    }

    /// How many of a StatefulSet's pods have had their claims: a claim that was never bound has had no pod.
    async fn by_claims(&self, client: &Client) -> Result<Option<Shown>, kube::Error> {
        if self.claim_templates.is_empty() {
            return Ok(None);
        }
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(client.clone(), &self.workload.name.namespace);
        let mut replicas = 0;
        'pods: for number in 0..self.stamp.replicas.min(MOST_RESTORED) {
            for claim in self.claims_of(number) {
                let claim = api.get_opt(&claim.name).await?;
                let bound = claim
                    .and_then(|c| c.status?.phase)
                    .is_some_and(|phase| phase == "Bound");
                if !bound {
                    break 'pods;
                }
            }
            replicas = number + 1;
        }
        let by = format!("the first {replicas} of its pods have bound claims");
        Ok(Some(Shown { replicas, by }))
    }

    /// The greatest count that one of a Deployment's ReplicaSets remembers.
    async fn by_replica_sets(&self, client: &Client) -> Result<Option<Shown>, kube::Error> {
        let api: Api<ReplicaSet> = Api::namespaced(client.clone(), &self.workload.name.namespace);
        let sets = api.list(&ListParams::default()).await?;
        let own = |s: &&ReplicaSet| {
            controller_of(&s.metadata).is_some_and(|o| o.uid == self.workload.uid.as_str())
        };
        let counts = sets.items.iter().filter(own).filter_map(|s| {
            let replicas: i32 = s.annotations().get(DESIRED_REPLICAS)?.parse().ok()?;
            let by = format!(
                "its ReplicaSet {} was wanted with {replicas} replicas in all",
                s.name_any()
            );
            Some(Shown { replicas, by })
        });
        Ok(counts.max_by_key(|shown| shown.replicas))
    }

    /// The greatest count that a HorizontalPodAutoscaler lets it have.
    async fn by_autoscalers(&self, client: &Client) -> Result<Option<Shown>, kube::Error> {
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(client.clone(), &self.workload.name.namespace);
        let scalers = api.list(&ListParams::default()).await?;
        let most = scalers.items.iter().filter_map(|h| {
            let replicas = scaling_spec(h, &self.workload)?.max_replicas;
            let by = format!("HorizontalPodAutoscaler {} allows {replicas}", h.name_any());
            Some(Shown { replicas, by })
        });
        Ok(most.max_by_key(|shown| shown.replicas))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(stamp: &str, managers: &Value) -> ObjectMeta {
        serde_json::from_value(json!({"name": "redis", "namespace": "cache", "uid": "u-1",
            "annotations": {STAMP_ANNOTATION: stamp}, "managedFields": managers}))
        .unwrap()
    }

    fn entry(manager: &str, fields: &Value) -> Value {
        json!({"manager": manager, "operation": "Update", "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
            "fieldsV1": fields})
    }

    #[test]
    fn the_last_writer_is_read_from_managed_fields() {
        let stamp =
            json!({"f:metadata": {"f:annotations": {".": {}, "f:reattach.dev/restore": {}}}});
        let count = json!({"f:spec": {"f:replicas": {}}});
        let other =
            json!({"f:metadata": {"f:annotations": {"f:note": {}}}, "f:spec": {"f:template": {}}});
        for (manager, fields, stamped, counted) in [
            ("reattach-controller/0.1.0", &stamp, true, false),
            ("kubectl-reattach/0.1.0", &count, false, true),
            ("reattach-controller", &stamp, true, false),
            ("reattach-controllers/0.1.0", &stamp, false, false),
            ("kubectl-edit", &stamp, false, false),
            ("reattach-controller/0.1.0", &other, false, false),
        ] {
            let meta = deployment(
                "",
                &json!([entry("kubectl", &other), entry(manager, fields)]),
            );
            let expected = Written {
                stamp: stamped,
                replicas: counted,
            };
            assert_eq!(written(&meta), expected, "{manager} {fields}");
        }
    }

    #[test]
    fn a_copy_of_a_stamp_is_left_out() {
        let kind = ApiResource::erase::<Deployment>(&());
        let of = |uid: &str| {
            json!({"replicas": 2, "workload": uid, "recovery": "r", "at": "2026-03-01T00:00:00Z"})
                .to_string()
        };
        assert!(marked(&kind, &deployment(&of("u-1"), &json!([]))).is_some());
        assert!(marked(&kind, &deployment(&of("u-2"), &json!([]))).is_none());
    }

    /// A count that an editor wrote must not make a list of two thousand million names.
    #[test]
    fn the_claims_of_an_absurd_count_are_bounded() {
        let kind = ApiResource::erase::<StatefulSet>(&());
        let stamp = json!({"replicas": i32::MAX, "workload": "u-1", "recovery": "r", "at": "2026-03-01T00:00:00Z"});
        let mut object = DynamicObject::new("redis", &kind);
        object.metadata = deployment(&stamp.to_string(), &json!([]));
        object.metadata.resource_version = Some("7".to_owned());
        object.data = json!({"spec": {"replicas": 0, "ordinals": {"start": 1},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
        let stamped = stamped(&kind, &object).unwrap();
        let claims = stamped.claims(stamped.stamp.replicas);
        assert_eq!(claims.len(), 110);
        assert_eq!(claims[0].name, "data-redis-1");
    }
}
