//! Finding workloads that carry a stamp, without a recovery that leads to them.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, ResourceExt};
use reattach_core::ids::{ObjectName, ResourceVersion, Uid};
use reattach_core::stamp::{STAMP_ANNOTATION, Stamp};
use reattach_core::workload::WorkloadRef;

/// How many objects one page of a list has, as in kubectl.
const PAGE: u32 = 500;

/// A workload with a stamp of its own: copies, which name another object's UID, are left out.
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
    /// The claims that its pods use, as many pods as the stamp counts.
    pub claims: Vec<ObjectName>,
}

/// Every Deployment, StatefulSet and ReplicaSet of the cluster with an intact stamp.
///
/// # Caveats
/// Other kinds with `/scale` are not looked through: their recovery's finalizer is what leads to them.
///
/// # Errors
/// The first read that failed.
pub async fn find(client: &Client) -> Result<Vec<Stamped>, kube::Error> {
    let kinds = [
        ApiResource::erase::<Deployment>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<ReplicaSet>(&()),
    ];
    let mut found = Vec::new();
    for kind in &kinds {
        for name in marked(client, kind).await? {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &name.namespace, kind);
            found.extend(api.get_opt(&name.name).await?.and_then(|object| stamped(kind, &name, &object)));
        }
    }
    Ok(found)
}

/// The objects of a kind with the annotation. Only metadata is read.
async fn marked(client: &Client, kind: &ApiResource) -> Result<Vec<ObjectName>, kube::Error> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), kind);
    let mut found = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list_metadata(&params).await?;
        let marked = page.items.iter().filter(|o| o.annotations().contains_key(STAMP_ANNOTATION));
        found.extend(marked.map(|o| ObjectName::new(o.namespace().unwrap_or_default(), o.name_any())));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(found),
        }
    }
}

fn stamped(kind: &ApiResource, name: &ObjectName, object: &DynamicObject) -> Option<Stamped> {
    let stamp = Stamp::from_annotation(object.annotations().get(STAMP_ANNOTATION)?).ok()?;
    let uid = Uid::from(object.uid()?);
    // The Deployment controller copies annotations to ReplicaSets.
    if stamp.workload != uid {
        return None;
    }
    let replicas = object.data["spec"]["replicas"].as_i64().unwrap_or(1);
    Some(Stamped {
        workload: WorkloadRef {
            api_version: kind.api_version.clone(),
            kind: kind.kind.clone(),
            plural: kind.plural.clone(),
            name: name.clone(),
            uid,
        },
        resource_version: ResourceVersion::from(object.resource_version().unwrap_or_default()),
        replicas: i32::try_from(replicas).unwrap_or(i32::MAX),
        claims: claims(name, &object.data, stamp.replicas),
        stamp,
    })
}

/// The claims that the template names, and those that a StatefulSet makes for each of its pods.
fn claims(name: &ObjectName, object: &serde_json::Value, pods: i32) -> Vec<ObjectName> {
    let list =
        |pointer: &str| object.pointer(pointer).and_then(|v| v.as_array()).cloned().unwrap_or_default();
    let volumes = list("/spec/template/spec/volumes");
    let named = volumes.iter().filter_map(|v| v["persistentVolumeClaim"]["claimName"].as_str());
    let mut names: Vec<String> = named.map(str::to_owned).collect();
    let templates = list("/spec/volumeClaimTemplates");
    for template in templates.iter().filter_map(|t| t["metadata"]["name"].as_str()) {
        names.extend((0..pods).map(|number| format!("{template}-{}-{number}", name.name)));
    }
    names.into_iter().map(|claim| ObjectName::new(name.namespace.as_str(), claim)).collect()
}
