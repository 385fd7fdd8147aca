//! Single attempts of volume operations, with the texts that kubelet and Linode's driver write.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::volumes::VolumeSpec;
use super::{NodePluginFaults, Shared, StageFault};
use crate::cloud::Ground;
use crate::kapi::{Kapi, code_of, is_bound, items, lock, terminating};
use crate::names::staging_hash;

/// Work of one NodeStage (find, check, mount), one NodeUnpublish and one NodeUnstage.
pub(super) const STAGE: Duration = Duration::from_millis(300);
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
    let devices = shared.hardware.guest_devices(&shared.config.instance).await;
    let present = devices.iter().any(|d| d.handle == spec.handle)
        && !lock(&shared.hidden).contains(&spec.handle);
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

/// A Secret or ConfigMap volume: the error is the event's text.
pub(super) async fn set_up_object(
    kapi: &Kapi,
    ns: &str,
    volume: &str,
    kind: &str,
    object: &str,
) -> Result<(), String> {
    if kind == CLAIM {
        return match claim_of(kapi, ns, object).await {
            Ok(Some((claim, pv))) if is_bound(&claim, &pv) => Ok(()),
            Ok(_) => Err(format!(
                "unable to process volume \"{volume}\": PVC {ns}/{object} is not bound"
            )),
            Err(e) => Err(format!("unable to process volume \"{volume}\": {e}")),
        };
    }
    let plural = if kind == "secret" {
        "secrets"
    } else {
        "configmaps"
    };
    match kapi
        .get(&format!("/api/v1/namespaces/{ns}/{plural}/{object}"))
        .await
    {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(format!(
            "MountVolume.SetUp failed for volume \"{volume}\" : {kind} \"{object}\" not found"
        )),
        Err(e) => Err(format!(
            "MountVolume.SetUp failed for volume \"{volume}\" : {e}"
        )),
    }
}

/// A claim, as the kind of a pod's [`ObjectVolume`]: one that is not bound to its volume.
pub(super) const CLAIM: &str = "claim";

/// A claim with the PersistentVolume that it names.
async fn claim_of(
    kapi: &Kapi,
    ns: &str,
    claim: &str,
) -> Result<Option<(Value, Value)>, kube::Error> {
    let claim = kapi
        .get(&format!(
            "/api/v1/namespaces/{ns}/persistentvolumeclaims/{claim}"
        ))
        .await?;
    let Some(claim) = claim else { return Ok(None) };
    let Some(pv) = claim["spec"]["volumeName"].as_str().map(str::to_owned) else {
        return Ok(None);
    };
    let pv = kapi.get(&format!("/api/v1/persistentvolumes/{pv}")).await?;
    Ok(pv.map(|pv| (claim, pv)))
}

/// A Secret or ConfigMap that a pod mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectVolume {
    pub volume: String,
    pub kind: &'static str,
    pub object: String,
}

/// The volumes of a pod: API objects and CSI volumes.
pub(super) async fn resolve(
    kapi: &Kapi,
    pod: &Value,
) -> Result<(Vec<ObjectVolume>, Vec<VolumeSpec>), kube::Error> {
    let (mut objects, mut volumes) = (Vec::new(), Vec::new());
    let (ns, pod_name) = (crate::kapi::namespace(pod), crate::kapi::name(pod));
    for v in items(pod, "/spec/volumes") {
        let volume = crate::kapi::text(v, "/name").to_owned();
        let optional = |p: &str| v[p]["optional"] == true;
        if let Some(object) = v["secret"]["secretName"]
            .as_str()
            .filter(|_| !optional("secret"))
        {
            objects.push(ObjectVolume {
                volume: volume.clone(),
                kind: "secret",
                object: object.into(),
            });
        }
        if let Some(object) = v["configMap"]["name"]
            .as_str()
            .filter(|_| !optional("configMap"))
        {
            objects.push(ObjectVolume {
                volume: volume.clone(),
                kind: "configmap",
                object: object.into(),
            });
        }
        let claim = match v["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => claim.to_owned(),
            None if v["ephemeral"].is_object() => format!("{pod_name}-{volume}"),
            None => continue,
        };
        let Some((object, pv)) = claim_of(kapi, ns, &claim).await? else {
            continue;
        };
        if !is_bound(&object, &pv) {
            objects.push(ObjectVolume {
                volume,
                kind: CLAIM,
                object: claim,
            });
            continue;
        }
        let volume = pv;
        let csi = &volume["spec"]["csi"];
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
            pv: crate::kapi::name(&volume).into(),
            handle: handle.into(),
            driver: driver.into(),
            fs_type: csi["fsType"].as_str().unwrap_or_default().into(),
            attach_required,
        });
    }
    Ok((objects, volumes))
}
