//! Reads kubelet's CSI folders: its volumes, and the mount points of each.
//!
//! Paths of kubelet 1.36 (`pkg/volume/csi`): `plugins/kubernetes.io/csi/DRIVER/SHA256(handle)/` for staging
//! (up to 1.23 `…/csi/pv/PV/`), `pods/UID/volumes/kubernetes.io~csi/PV/` for publishing, and
//! `plugins/kubernetes.io/csi/volumeDevices/` for raw block volumes.

use super::root::Reader;
use reattach_core::ids::{DriverName, PvName, Uid, VolumeHandle};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Driver and handle of a volume.
pub(crate) type Key = (DriverName, VolumeHandle);

/// The facts about one volume in kubelet's folders.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    pub(crate) pv: Option<PvName>,
    pub(crate) pods: BTreeSet<Uid>,
}

/// All CSI volumes in kubelet's folders.
#[derive(Debug, Default)]
pub(crate) struct Folders {
    pub(crate) volumes: BTreeMap<Key, Folder>,
    places: BTreeMap<Place, Key>,
    pauses: u32,
}

/// The purpose of a path below kubelet's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Staging path of a volume: driver and hash of the handle.
    Staging(String, String),
    /// Staging path by the PV's name (old kubelets, raw block volumes).
    Named(String),
    /// Path of a volume published for a pod: pod UID and folder name.
    Publish(String, String),
    /// A subPath of a volume (of any kind, not only CSI) in a pod.
    SubPath(String, String),
}

/// The parts of `vol_data.json` that identify a volume.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct VolData {
    #[serde(default)]
    driver_name: String,
    #[serde(default)]
    volume_handle: String,
    #[serde(default, rename = "specVolID")]
    spec_vol_id: String,
    #[serde(default)]
    volume_lifecycle_mode: String,
}

/// Maximum number of pauses of one scan for files that are cut short. After a power loss many may be so for good.
const PAUSES: u32 = 25;
/// Pause before such a file is read again.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns the hash that kubelet uses as the name of a volume's staging folder.
pub(crate) fn staging_hash(handle: &VolumeHandle) -> String {
    Sha256::digest(handle.as_str())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Reads kubelet's folders. A missing folder is no error, because a node may have no CSI volume.
pub(crate) fn read(reader: &mut Reader<'_>) -> Folders {
    let mut folders = Folders::default();
    let kubelet = match reader.root.resolve(reader.root.kubelet_root()) {
        Ok(real) => real,
        Err(e) => {
            reader.unreadable(reader.root.kubelet_root(), e);
            return folders;
        }
    };
    // Convert back to a host path, for messages.
    let below = kubelet
        .strip_prefix(reader.root.join("/"))
        .unwrap_or(&kubelet)
        .to_string_lossy()
        .into_owned();
    let kubelet = format!("/{}", below.trim_start_matches('/'));
    let csi = format!("{kubelet}/plugins/kubernetes.io/csi");
    for driver in reader
        .list(&csi)
        .unwrap_or_default()
        .into_iter()
        .filter(|name| name != "volumeDevices")
    {
        for volume in reader.list(&format!("{csi}/{driver}")).unwrap_or_default() {
            let place = match driver.as_str() {
                "pv" => Place::Named(volume.clone()),
                _ => Place::Staging(driver.clone(), volume.clone()),
            };
            folders.add(reader, &format!("{csi}/{driver}/{volume}"), place, None);
        }
    }
    let block = format!("{csi}/volumeDevices");
    let names = reader.list(&block).unwrap_or_default();
    for pv in names
        .into_iter()
        .filter(|name| name != "staging" && name != "publish")
    {
        let place = Place::Named(pv.clone());
        if let Some(key) = folders.add(reader, &format!("{block}/{pv}/data"), place, None) {
            for dir in [format!("{block}/{pv}/dev"), format!("{block}/publish/{pv}")] {
                let pods = reader.list(&dir).unwrap_or_default();
                folders
                    .volumes
                    .entry(key.clone())
                    .or_default()
                    .pods
                    .extend(pods.into_iter().map(Uid::new));
            }
        }
    }
    let pods = format!("{kubelet}/pods");
    for pod in reader.list(&pods).unwrap_or_default() {
        let dir = format!("{pods}/{pod}/volumes/kubernetes.io~csi");
        for volume in reader.list(&dir).unwrap_or_default() {
            let place = Place::Publish(pod.clone(), volume.clone());
            folders.add(
                reader,
                &format!("{dir}/{volume}"),
                place,
                Some(Uid::new(&*pod)),
            );
        }
    }
    folders
}

impl Folders {
    /// Reads a `vol_data.json`, again if it is empty or cut short. kubelet truncates and writes the file in place
    /// (`saveVolumeData` in `pkg/volume/csi/csi_util.go`), for a raw block volume several times a second while it cannot map the
    /// volume: every third scan found the file empty (measured). Returns `None` if the file cannot be read at all.
    fn vol_data(
        &mut self,
        reader: &mut Reader<'_>,
        file: &str,
    ) -> Option<serde_json::Result<VolData>> {
        loop {
            match serde_json::from_slice(&reader.read(file)?) {
                Err(e) if e.is_eof() && self.pauses < PAUSES => {
                    self.pauses += 1;
                    std::thread::sleep(PAUSE);
                }
                read => return Some(read),
            }
        }
    }

    /// Adds one folder with a `vol_data.json`. Never reads the mount point beside that file: a dead mount would return EIO, and
    /// a hanging one would not return.
    fn add(
        &mut self,
        reader: &mut Reader<'_>,
        dir: &str,
        place: Place,
        pod: Option<Uid>,
    ) -> Option<Key> {
        let file = format!("{dir}/vol_data.json");
        let data = match self.vol_data(reader, &file)? {
            Ok(data) if data.driver_name.is_empty() || data.volume_handle.is_empty() => {
                reader.unreadable(&file, "names no driver or no volume handle");
                return None;
            }
            Ok(data) => data,
            Err(e) => {
                reader.unreadable(&file, e);
                return None;
            }
        };
        let key = (
            DriverName::new(data.driver_name),
            VolumeHandle::new(data.volume_handle),
        );
        let folder = self.volumes.entry(key.clone()).or_default();
        if !data.spec_vol_id.is_empty() && data.volume_lifecycle_mode != "Ephemeral" {
            folder.pv = Some(PvName::new(data.spec_vol_id));
        }
        folder.pods.extend(pod);
        self.places.insert(place, key.clone());
        Some(key)
    }

    /// Returns the volume of a path, if a `vol_data.json` names it.
    pub(crate) fn owner(&self, place: &Place) -> Option<&Key> {
        match place {
            Place::Staging(driver, hash) => self.places.get(place).or_else(|| {
                self.volumes
                    .keys()
                    .find(|key| key.0.as_str() == driver && staging_hash(&key.1) == *hash)
            }),
            Place::SubPath(pod, volume) => self
                .places
                .get(&Place::Publish(pod.clone(), volume.clone())),
            Place::Named(_) | Place::Publish(..) => self.places.get(place),
        }
    }
}

/// Returns the purpose of a mount point, by its path only, so that a wrong or moved kubelet folder hides no mount.
pub(crate) fn place(point: &str) -> Option<Place> {
    if let Some((_, tail)) = point.rsplit_once("/plugins/kubernetes.io/csi/") {
        return match *tail.split('/').collect::<Vec<_>>() {
            ["volumeDevices", "staging" | "publish", pv, ..] => Some(Place::Named(pv.to_owned())),
            ["volumeDevices", pv, "dev", ..] => Some(Place::Named(pv.to_owned())),
            ["pv", pv, "globalmount"] => Some(Place::Named(pv.to_owned())),
            [driver, hash, "globalmount"] => {
                Some(Place::Staging(driver.to_owned(), hash.to_owned()))
            }
            _ => None,
        };
    }
    let (_, tail) = point.rsplit_once("/pods/")?;
    match *tail.split('/').collect::<Vec<_>>() {
        [pod, "volumes", "kubernetes.io~csi", volume, "mount"] => {
            Some(Place::Publish(pod.to_owned(), volume.to_owned()))
        }
        [pod, "volume-subpaths", volume, ..] => {
            Some(Place::SubPath(pod.to_owned(), volume.to_owned()))
        }
        _ => None,
    }
}
