//! Collecting what the pods on a node that is to be fenced would lose.

use crate::collect::Collector;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::{Api, ResourceExt};
use reattach_cluster::losses;
use reattach_cluster::view::claims_of;
use reattach_core::loss::PodLoss;
use std::collections::BTreeMap;

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
        let mut all = Vec::new();
        for pod in pods.iter().map(AsRef::as_ref).filter(|p| losses::counts(p)) {
            let namespace = pod.namespace().unwrap_or_default();
            let mut claims = Vec::new();
            for name in claims_of(pod) {
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
            all.extend(losses::of_pod(pod, &claims, job.as_ref()));
        }
        all.sort();
        Ok(all)
    }

    async fn claim(
        &self,
        namespace: &str,
        name: &str,
        live: bool,
    ) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        match &self.cache {
            Some(cache) if !live => Ok(cache.claims.get(namespace, name).map(|c| (*c).clone())),
            _ => Api::namespaced(self.clients.read.clone(), namespace).get_opt(name).await,
        }
    }
}
