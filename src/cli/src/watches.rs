//! The watches of a command that looks at the whole cluster.

use crate::fail::Fail;
use crate::session::Session;
use k8s_openapi::api::core::v1::{
    Event, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::Api;
use kube::api::ListParams;
use reattach_api::{NodeVolumeReport, RecoveryPolicy, VolumeRecovery};
use reattach_cluster::cache::{Cache, Cached};
use std::time::Duration;
use tokio::task::JoinSet;

/// The first lists of a large cluster take seconds, not minutes.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Starts every watch and waits until each has its first list. A watch that lacks a right would be tried again for
/// ever, so every kind is listed once before.
///
/// # Errors
/// The right that is missing, or no answer.
pub async fn start(session: &Session, tasks: &mut JoinSet<()>) -> Result<Cache, Fail> {
    tokio::try_join!(
        probe::<Pod>(session),
        probe::<PersistentVolumeClaim>(session),
        probe::<PersistentVolume>(session),
        probe::<VolumeAttachment>(session),
        probe::<Node>(session),
        probe::<CSINode>(session),
        probe::<CSIDriver>(session),
        probe::<Namespace>(session),
        probe::<Event>(session),
        probe::<VolumeRecovery>(session),
        probe::<RecoveryPolicy>(session),
        probe::<NodeVolumeReport>(session),
    )?;
    let cache = Cache::start(&session.clients.read, session.clock.clone(), tasks);
    match tokio::time::timeout(READY_WITHIN, cache.ready()).await {
        Ok(()) => Ok(cache),
        Err(_) => Err(Fail::Unreachable {
            server: session.server.clone(),
            why: format!(
                "the watches had no first answer within {} s",
                READY_WITHIN.as_secs()
            ),
        }),
    }
}

async fn probe<K: Cached>(session: &Session) -> Result<(), Fail> {
    let api: Api<K> = Api::all(session.clients.read.clone());
    let doing = format!("watch the {} of the cluster", K::plural(&()));
    session
        .ask(&doing, api.list(&ListParams::default().limit(1)))
        .await
        .map(|_| ())
}
