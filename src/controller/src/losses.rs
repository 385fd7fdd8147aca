//! Collecting what the pods on a node that is to be fenced would lose.

use crate::collect::Collector;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::metadata;
use reattach_cluster::losses;
use reattach_cluster::view::claims_of;
use reattach_core::loss::PodLoss;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Claims that some pod owns, by the namespace that was listed; under `None` those of the watches.
#[derive(Default)]
struct OwnedByPods(BTreeMap<Option<String>, Vec<Arc<PersistentVolumeClaim>>>);

impl OwnedByPods {
    fn is_one(claim: &PersistentVolumeClaim) -> bool {
        claim.owner_references().iter().any(|o| o.kind == "Pod")
    }
}

impl Collector {
    /// What each of these pods would lose. Claims come from the watches, or `live` from the API server, and Jobs always
    /// from there.
    ///
    /// # Errors
    /// The first read that failed. What cannot be read is never "nothing is lost".
    pub(crate) async fn losses_of(
        &self,
        pods: &[impl AsRef<Pod>],
        live: bool,
    ) -> Result<Vec<PodLoss>, kube::Error> {
        let mut read: BTreeMap<(String, String), Option<PersistentVolumeClaim>> = BTreeMap::new();
        let mut owned = OwnedByPods::default();
        if let Some(cache) = &self.cache {
            owned
                .0
                .insert(None, cache.claims.filter(OwnedByPods::is_one));
        }
        let mut all = Vec::new();
        for pod in pods.iter().map(AsRef::as_ref).filter(|p| losses::counts(p)) {
            let namespace = metadata::of(pod).namespace()?.to_owned();
            let mut claims = Vec::new();
            let mut names: BTreeSet<String> = claims_of(pod).into_iter().collect();
            names.extend(self.claims_owned_by(pod, &namespace, &mut owned).await?);
            for name in names {
                let key = (namespace.clone(), name);
                let claim = match read.get(&key) {
                    Some(known) => known.clone(),
                    None => {
                        let found = self.claim(&key.0, &key.1, live).await?;
                        read.insert(key, found.clone());
                        found
                    }
                };
                claims.extend(claim);
            }
            let job = match losses::job_of(pod) {
                Some(owner) => {
                    let api: Api<Job> = Api::namespaced(self.clients.read.clone(), &namespace);
                    api.get_opt(&owner.name).await?
                }
                None => None,
            };
            all.extend(losses::of_pod(pod, &claims, job.as_ref())?);
        }
        all.sort();
        Ok(all)
    }

    /// The names of the claims that this pod owns, whether it uses them or not: from the watches, or without any from a list
    /// of the namespace.
    async fn claims_owned_by(
        &self,
        pod: &Pod,
        namespace: &str,
        owned: &mut OwnedByPods,
    ) -> Result<Vec<String>, kube::Error> {
        let of = self.cache.is_none().then(|| namespace.to_owned());
        if !owned.0.contains_key(&of) {
            let api =
                Api::<PersistentVolumeClaim>::namespaced(self.clients.read.clone(), namespace);
            let all = api.list(&ListParams::default()).await?.items;
            owned.0.insert(
                of.clone(),
                all.into_iter()
                    .filter(OwnedByPods::is_one)
                    .map(Arc::new)
                    .collect(),
            );
        }
        let all = owned.0.get(&of).into_iter().flatten();
        let of_it = |c: &&Arc<PersistentVolumeClaim>| {
            c.namespace().as_deref() == Some(namespace) && losses::owns(pod, c)
        };
        Ok(all.filter(of_it).map(|c| c.name_any()).collect())
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
        live: bool,
    ) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.claims.get(namespace, name).map(|c| (*c).clone())),
            _ => {
                Api::namespaced(self.clients.read.clone(), namespace)
                    .get_opt(name)
                    .await
            }
        }
    }
}
