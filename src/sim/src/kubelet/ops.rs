//! Single attempts of volume operations, with the texts that kubelet and Linode's driver write.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::volumes::VolumeSpec;
use super::{NodePluginFaults, Shared, StageFault};
use crate::cloud::Ground;
use crate::kapi::{Kapi, code_of, lock};
use crate::names::staging_hash;
use crate::object::{claims_of, is_bound, items, name, namespace, terminating, text};

/// Work of one NodeStage (find, check, mount), one NodeUnpublish and one NodeUnstage.
const STAGE: Duration = Duration::from_millis(300);
pub(super) const UNPUBLISH: Duration = Duration::from_millis(250);
pub(super) const UNSTAGE: Duration = Duration::from_millis(250);
/// kubelet's time-out of a CSI call.
const CSI_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a node plugin that answers DeadlineExceeded takes.
const SLOW_STAGE: Duration = Duration::from_secs(2);

/// Filesystems that the simulated kernel knows.
const FILESYSTEMS: &[&str] = &["", "ext2", "ext3", "ext4", "xfs", "btrfs"];

/// Outcome of an attempt to mount a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mounted {
    /// Mounted; the kernel's device name.
    Yes(String),
    /// Not attempted: the attachment is not right. The text is the event.
    NotYet(String),
    /// A final error: the staging directory is removed.
    Final(String),
    /// An error that decides nothing.
    Uncertain(String),
}

/// The live check of `volumesAttached`.
pub(super) async fn verify(kapi: &Kapi, node: &str, spec: &VolumeSpec, reported: bool) -> bool {
    if !spec.attach_required {
        return true;
    }
    if !reported {
        return false;
    }
    match kapi.get(&format!("/api/v1/nodes/{node}")).await {
        Ok(Some(live)) => {
            items(&live, "/status/volumesAttached").any(|v| v["name"] == *spec.unique_name())
        }
        _ => false,
    }
}

/// The live check of the VolumeAttachment before every attempt; the error is the event's text.
async fn check_attachment(kapi: &Kapi, node: &str, spec: &VolumeSpec) -> Result<(), String> {
    let (name, handle) = (spec.attachment(node), &spec.handle);
    let fail = |why: String| {
        Err(format!(
            "MountVolume.WaitForAttach failed for volume \"{}\" : {why}",
            spec.pv
        ))
    };
    match kapi
        .get(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}"))
        .await
    {
        Ok(None) => fail(format!(
            "volume {handle} has GET error for volume attachment {name}: volumeattachments.storage.k8s.io \"{name}\" not found"
        )),
        Err(e) => fail(format!(
            "volume {handle} has GET error for volume attachment {name}: {e}"
        )),
        Ok(Some(va)) if terminating(&va) => fail("volume attachment is being deleted".into()),
        Ok(Some(va)) if va["status"]["attached"] != true => fail(format!(
            "volume {handle} is not attached for volume attachment {name}"
        )),
        Ok(Some(_)) => Ok(()),
    }
}

/// One attempt: check the attachment, then NodeStage. `device_name` picks the kernel's name for a device.
pub(super) async fn mount_device(
    shared: &Arc<Shared>,
    kapi: &Kapi,
    spec: &VolumeSpec,
    device_name: impl Fn(&str) -> String,
) -> Mounted {
    if spec.attach_required
        && let Err(text) = check_attachment(kapi, &shared.config.node, spec).await
    {
        return Mounted::NotYet(text);
    }
    let faults: NodePluginFaults = lock(&shared.faults).clone();
    let prefix = format!(
        "MountVolume.MountDevice failed for volume \"{}\" :",
        spec.pv
    );
    if faults.unregistered {
        return Mounted::NotYet(format!(
            "{prefix} kubernetes.io/csi: attacher.MountDevice failed to create newCsiDriverClient: driver name {} not found in the list of registered CSI drivers",
            spec.driver
        ));
    }
    let deadline = || {
        Mounted::Uncertain(format!(
            "{prefix} rpc error: code = DeadlineExceeded desc = context deadline exceeded"
        ))
    };
    match faults.stage {
        Some(StageFault::DeadlineExceeded) => {
            tokio::time::sleep(SLOW_STAGE).await;
            return deadline();
        }
        Some(StageFault::Hang) => {
            tokio::time::sleep(CSI_TIMEOUT).await;
            return deadline();
        }
        Some(StageFault::Internal(why)) => {
            tokio::time::sleep(STAGE).await;
            return Mounted::Final(format!("{prefix} rpc error: code = Internal desc = {why}"));
        }
        None => {}
    }
    tokio::time::sleep(STAGE).await;
    let devices = shared.cloud.guest_devices(&shared.config.instance);
    let present = devices.iter().any(|d| d.handle == spec.handle);
    let label = spec.label();
    if !present && spec.driver == Ground::Ebs.driver() {
        // The EBS driver's words.
        return Mounted::Final(format!(
            "{prefix} rpc error: code = NotFound desc = Failed to find device path /dev/xvdaa. no device path for device \"/dev/xvdaa\" volume \"{label}\" found"
        ));
    }
    if !present {
        return Mounted::Final(format!(
            "{prefix} rpc error: code = Internal desc = Unable to find device path out of attempted paths: [/dev/disk/by-id/linode-{label} /dev/disk/by-id/scsi-0Linode_Volume_{label}]"
        ));
    }
    if !FILESYSTEMS.contains(&spec.fs_type.as_str()) {
        let (device, fs) = (
            format!("/dev/disk/by-id/scsi-0Linode_Volume_{label}"),
            &spec.fs_type,
        );
        let target = format!(
            "/var/lib/kubelet/plugins/kubernetes.io/csi/{}/{}/globalmount",
            spec.driver,
            staging_hash(&spec.handle)
        );
        return Mounted::Final(format!(
            "{prefix} rpc error: code = Internal desc = Failed to format and mount device from (\"{device}\") to (\"{target}\") with fstype (\"{fs}\") and options ([]): mount failed: exit status 32\nMounting command: mount\nMounting arguments: -t {fs} -o defaults {device} {target}\nOutput: mount: {target}: unknown filesystem type '{fs}'.\n"
        ));
    }
    Mounted::Yes(device_name(&spec.handle))
}

/// An object that a pod's volume needs before the pod can start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ObjectVolume {
    Secret {
        volume: String,
        name: String,
    },
    ConfigMap {
        volume: String,
        name: String,
    },
    /// A claim that is not bound to its volume. Which volume the pod mounts is known only once it is.
    Claim {
        volume: String,
        name: String,
    },
}

/// Looks for the object; the error is the event's text.
pub(super) async fn set_up_object(
    kapi: &Kapi,
    ns: &str,
    object: &ObjectVolume,
) -> Result<(), String> {
    let (volume, kind, plural, name) = match object {
        ObjectVolume::Secret { volume, name } => (volume, "secret", "secrets", name),
        ObjectVolume::ConfigMap { volume, name } => (volume, "configmap", "configmaps", name),
        ObjectVolume::Claim { volume, name } => {
            let why = match claim_of(kapi, ns, name).await {
                Ok(Some((claim, pv))) if is_bound(&claim, &pv) => return Ok(()),
                Ok(_) => format!("PVC {ns}/{name} is not bound"),
                Err(e) => e.to_string(),
            };
            return Err(format!("unable to process volume \"{volume}\": {why}"));
        }
    };
    let path = format!("/api/v1/namespaces/{ns}/{plural}/{name}");
    let why = match kapi.get(&path).await {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => format!("{kind} \"{name}\" not found"),
        Err(e) => e.to_string(),
    };
    Err(format!(
        "MountVolume.SetUp failed for volume \"{volume}\" : {why}"
    ))
}

/// A claim with the PersistentVolume that it names.
async fn claim_of(
    kapi: &Kapi,
    ns: &str,
    claim: &str,
) -> Result<Option<(Value, Value)>, kube::Error> {
    let path = format!("/api/v1/namespaces/{ns}/persistentvolumeclaims/{claim}");
    let Some(claim) = kapi.get(&path).await? else {
        return Ok(None);
    };
    let Some(pv) = claim["spec"]["volumeName"].as_str() else {
        return Ok(None);
    };
    let pv = kapi.get(&format!("/api/v1/persistentvolumes/{pv}")).await?;
    Ok(pv.map(|pv| (claim, pv)))
}

/// The volumes of a pod: API objects and CSI volumes.
pub(super) async fn resolve(
    kapi: &Kapi,
    pod: &Value,
) -> Result<(Vec<ObjectVolume>, Vec<VolumeSpec>), kube::Error> {
    let (mut objects, mut volumes) = (Vec::new(), Vec::new());
    for v in items(pod, "/spec/volumes") {
        let volume = text(v, "/name").to_owned();
        let required = |source: &str, field: &str| {
            let source = &v[source];
            let name = source[field].as_str().map(str::to_owned);
            name.filter(|_| source["optional"] != true)
        };
        if let Some(name) = required("secret", "secretName") {
            objects.push(ObjectVolume::Secret { volume, name });
        } else if let Some(name) = required("configMap", "name") {
            objects.push(ObjectVolume::ConfigMap { volume, name });
        }
    }
    for (volume, claim) in claims_of(pod) {
        let Some((object, pv)) = claim_of(kapi, namespace(pod), &claim).await? else {
            continue;
        };
        if !is_bound(&object, &pv) {
            objects.push(ObjectVolume::Claim {
                volume: volume.to_owned(),
                name: claim,
            });
            continue;
        }
        let csi = &pv["spec"]["csi"];
        let (Some(handle), Some(driver)) = (csi["volumeHandle"].as_str(), csi["driver"].as_str())
        else {
            continue;
        };
        let attach_required = match kapi
            .get(&format!("/apis/storage.k8s.io/v1/csidrivers/{driver}"))
            .await
        {
            Ok(d) => d.is_none_or(|d| d["spec"]["attachRequired"] != false),
            Err(e) if code_of(&e) == 403 => true,
            Err(e) => return Err(e),
        };
        volumes.push(VolumeSpec {
            pv: name(&pv).into(),
            handle: handle.into(),
            driver: driver.into(),
            fs_type: text(csi, "/fsType").into(),
            attach_required,
        });
    }
    Ok((objects, volumes))
}
