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

/// Maximum time until each watch has its first list. In a large cluster they take seconds, not minutes.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// Starts every watch and waits until each has its first list. A watch without the right to it would be retried for ever, so
/// every kind is listed once before.
pub async fn start(session: &Session, tasks: &mut JoinSet<()>) -> Result<Cache, Fail> {
    tokio::try_join!(
        require_right_to_list::<Pod>(session),
        require_right_to_list::<PersistentVolumeClaim>(session),
        require_right_to_list::<PersistentVolume>(session),
        require_right_to_list::<VolumeAttachment>(session),
        require_right_to_list::<Node>(session),
        require_right_to_list::<CSINode>(session),
        require_right_to_list::<CSIDriver>(session),
        require_right_to_list::<Namespace>(session),
        require_right_to_list::<Event>(session),
        require_right_to_list::<VolumeRecovery>(session),
        require_right_to_list::<RecoveryPolicy>(session),
        require_right_to_list::<NodeVolumeReport>(session),
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

async fn require_right_to_list<K: Cached>(session: &Session) -> Result<(), Fail> {
    let api: Api<K> = Api::all(session.clients.read.clone());
    let doing = format!("watch the {} of the cluster", K::plural(&()));
    session
        .ask(&doing, api.list(&ListParams::default().limit(1)))
        .await?;
    Ok(())
}
