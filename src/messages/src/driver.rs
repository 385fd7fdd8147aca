//! Kind of storage that a message is about, by driver name or by wording.

use crate::phrase::{Word, occurs};

/// Kind of storage behind a driver. It decides whether a cloud can detach the volume, and whether it is attached at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum StorageKind {
    /// Disks of a cloud or hypervisor that are attached to instances by an API.
    CloudBlock,
    /// Block storage of the cluster itself or reached over the network. No cloud call detaches it.
    ClusterBlock,
    /// NFS, SMB and other file shares (`attachRequired: false`).
    FileShare,
    /// Volumes that live and die with a pod: secret stores, certificates, identities.
    Inline,
    /// Disks and directories of the node.
    LocalDisk,
    /// Volumes that kubelet itself makes: Secret, ConfigMap, token, emptyDir, downward API.
    KubeletLocal,
    /// A directory or file of the node (hostPath).
    HostPath,
    /// Neither the driver nor the text names a known kind of storage.
    #[default]
    Unknown,
}

impl StorageKind {
    /// Does the attach/detach controller never attach volumes of this kind?
    pub(crate) fn never_attached(self) -> bool {
        matches!(
            self,
            Self::FileShare | Self::Inline | Self::LocalDisk | Self::KubeletLocal | Self::HostPath
        )
    }
}

/// Parts of the names that drivers and plugins register. The first match wins.
const NAMES: &[(&str, StorageKind)] = &[
    // Inline and file shares first: their names contain their cloud's name too.
    ("secrets-store", StorageKind::Inline),
    ("cert-manager", StorageKind::Inline),
    ("spiffe", StorageKind::Inline),
    ("kubernetes.io/secret", StorageKind::KubeletLocal),
    ("kubernetes.io/configmap", StorageKind::KubeletLocal),
    ("kubernetes.io/projected", StorageKind::KubeletLocal),
    ("kubernetes.io/downward-api", StorageKind::KubeletLocal),
    ("kubernetes.io/empty-dir", StorageKind::KubeletLocal),
    ("kubernetes.io/git-repo", StorageKind::KubeletLocal),
    ("kubernetes.io/image", StorageKind::KubeletLocal),
    ("kubernetes.io/host-path", StorageKind::HostPath),
    ("hostpath", StorageKind::HostPath),
    ("kubernetes.io/local-volume", StorageKind::LocalDisk),
    ("local.csi", StorageKind::LocalDisk),
    ("topolvm", StorageKind::LocalDisk),
    ("nfs", StorageKind::FileShare),
    ("smb", StorageKind::FileShare),
    ("cifs", StorageKind::FileShare),
    ("cephfs", StorageKind::FileShare),
    ("efs.csi", StorageKind::FileShare),
    ("fsx", StorageKind::FileShare),
    ("lustre", StorageKind::FileShare),
    ("file.csi", StorageKind::FileShare),
    ("azure-file", StorageKind::FileShare),
    ("filestore", StorageKind::FileShare),
    ("manila", StorageKind::FileShare),
    ("glusterfs", StorageKind::FileShare),
    ("juicefs", StorageKind::FileShare),
    ("blob.csi", StorageKind::FileShare),
    ("gcsfuse", StorageKind::FileShare),
    ("s3", StorageKind::FileShare),
    ("linode", StorageKind::CloudBlock),
    ("ebs", StorageKind::CloudBlock),
    ("gcepd", StorageKind::CloudBlock),
    ("pd.csi", StorageKind::CloudBlock),
    ("gce-pd", StorageKind::CloudBlock),
    ("disk.csi.azure", StorageKind::CloudBlock),
    ("azure-disk", StorageKind::CloudBlock),
    ("cinder", StorageKind::CloudBlock),
    ("vsphere", StorageKind::CloudBlock),
    ("hetzner", StorageKind::CloudBlock),
    ("digitalocean", StorageKind::CloudBlock),
    ("oraclecloud", StorageKind::CloudBlock),
    ("vultr", StorageKind::CloudBlock),
    ("scaleway", StorageKind::CloudBlock),
    ("exoscale", StorageKind::CloudBlock),
    ("upcloud", StorageKind::CloudBlock),
    ("diskplugin", StorageKind::CloudBlock),
    ("longhorn", StorageKind::ClusterBlock),
    ("rbd", StorageKind::ClusterBlock),
    ("linstor", StorageKind::ClusterBlock),
    ("portworx", StorageKind::ClusterBlock),
    ("openebs", StorageKind::ClusterBlock),
    ("mayastor", StorageKind::ClusterBlock),
    ("storageos", StorageKind::ClusterBlock),
    ("robin", StorageKind::ClusterBlock),
    ("iscsi", StorageKind::ClusterBlock),
];

/// Phrases that show the kind of storage where no driver is named. The first match wins.
const PHRASES: &[(&str, StorageKind)] = &[
    ("secret provider class", StorageKind::Inline),
    ("secret store", StorageKind::Inline),
    (
        "mount nfs|nfs4|cifs|smb3|efs|ceph|glusterfs|lustre|fuse",
        StorageKind::FileShare,
    ),
    (
        "t nfs|nfs4|cifs|smb3|efs|ceph|glusterfs|lustre|fuse",
        StorageKind::FileShare,
    ),
    (
        "nfs|smb|cifs|efs server|share|mount|volume",
        StorageKind::FileShare,
    ),
    (
        "nfs4|stunnel|fuseblk|rpcbind|cephfs|glusterfs|juicefs|s3fs|blobfuse|gcsfuse|portmapper",
        StorageKind::FileShare,
    ),
    ("rpc statd", StorageKind::FileShare),
    ("ceph fuse", StorageKind::FileShare),
    ("stale nfs? file handle", StorageKind::FileShare),
    ("transport endpoint not connected", StorageKind::FileShare),
    ("rbd image|map|device", StorageKind::ClusterBlock),
    ("longhorn|linstor|drbd", StorageKind::ClusterBlock),
];

/// Parts of paths that name an in-tree plugin or the kind of a device.
const PATHS: &[(&str, StorageKind)] = &[
    ("kubernetes.io~nfs", StorageKind::FileShare),
    ("kubernetes.io~cephfs", StorageKind::FileShare),
    ("kubernetes.io~glusterfs", StorageKind::FileShare),
    ("kubernetes.io~azure-file", StorageKind::FileShare),
    ("kubernetes.io~secret", StorageKind::KubeletLocal),
    ("kubernetes.io~configmap", StorageKind::KubeletLocal),
    ("kubernetes.io~projected", StorageKind::KubeletLocal),
    ("kubernetes.io~downward-api", StorageKind::KubeletLocal),
    ("kubernetes.io~empty-dir", StorageKind::KubeletLocal),
    ("kubernetes.io~host-path", StorageKind::HostPath),
    ("kubernetes.io~local-volume", StorageKind::LocalDisk),
    ("by-id/scsi-0linode_volume", StorageKind::CloudBlock),
    ("by-id/scsi-0hc_volume", StorageKind::CloudBlock),
    ("by-id/scsi-0do_volume", StorageKind::CloudBlock),
    ("by-id/google-", StorageKind::CloudBlock),
    ("/dev/longhorn/", StorageKind::ClusterBlock),
];

/// Returns the kind of storage of a named driver.
pub(crate) fn of_name(driver: &str) -> StorageKind {
    let driver = driver.to_lowercase();
    NAMES
        .iter()
        .find(|(part, _)| driver.contains(part))
        .map_or(StorageKind::Unknown, |(_, kind)| *kind)
}

/// Returns the kind of storage that the words of a message show.
pub(crate) fn of_words(words: &[Word]) -> StorageKind {
    let by_path = PATHS
        .iter()
        .find(|(part, _)| words.iter().any(|w| w.name && w.text.contains(part)));
    // mount(8) lists "nfs, cifs" as examples in an error about any filesystem.
    let examples = occurs("g nfs cifs", words);
    by_path
        .or_else(|| {
            PHRASES
                .iter()
                .find(|(phrase, _)| !examples && occurs(phrase, words))
        })
        .map_or(StorageKind::Unknown, |(_, kind)| *kind)
}

/// Returns a driver that the text names: below kubelet's CSI directory, as a CSI driver's domain name, or as an in-tree
/// plugin.
pub(crate) fn named_in(words: &[Word]) -> Option<String> {
    let in_path = words.iter().filter(|w| w.name).find_map(|w| {
        let after = w.text.split("/plugins/kubernetes.io/csi/").nth(1)?;
        let driver = after.split('/').next()?;
        (driver.contains('.') && of_name(driver) != StorageKind::Unknown).then(|| driver.to_owned())
    });
    in_path
        .or_else(|| {
            words
                .iter()
                .filter(|w| w.name)
                .map(|w| w.text.trim_end_matches(['/', ':']))
                .find(|text| {
                    let csi = text.contains(".csi.")
                        || text.starts_with("csi.")
                        || text.ends_with(".csi");
                    let longhorn = *text == "driver.longhorn.io";
                    let is_driver = (csi || longhorn) && !text.contains('/') && !text.contains('@');
                    is_driver && text.matches('.').count() >= 2
                })
                .map(str::to_owned)
        })
        .or_else(|| {
            words.iter().filter(|w| w.name).find_map(|w| {
                let plugin = w.text.strip_prefix("kubernetes.io/")?.split('/').next()?;
                let name = format!("kubernetes.io/{plugin}");
                (plugin != "csi" && of_name(&name) != StorageKind::Unknown).then_some(name)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phrase::{dead_term, words};

    #[test]
    fn phrases_are_alive() {
        for (phrase, _) in PHRASES {
            assert_eq!(dead_term(phrase), None, "{phrase}");
        }
    }

    #[test]
    fn kinds_of_names() {
        assert_eq!(of_name("linodebs.csi.linode.com"), StorageKind::CloudBlock);
        assert_eq!(of_name("file.csi.azure.com"), StorageKind::FileShare);
        assert_eq!(
            of_name("rook-ceph.cephfs.csi.ceph.com"),
            StorageKind::FileShare
        );
        assert_eq!(
            of_name("rook-ceph.rbd.csi.ceph.com"),
            StorageKind::ClusterBlock
        );
        assert_eq!(of_name("kubernetes.io/secret"), StorageKind::KubeletLocal);
        assert_eq!(of_name("example.org/unheard-of"), StorageKind::Unknown);
    }

    #[test]
    fn names_in_text() {
        let text =
            "to /var/lib/kubelet/plugins/kubernetes.io/csi/ebs.csi.aws.com/0000/globalmount failed";
        assert_eq!(named_in(&words(text)).as_deref(), Some("ebs.csi.aws.com"));
        let text = "driver name smb.csi.k8s.io not found in the list of registered CSI drivers";
        assert_eq!(named_in(&words(text)).as_deref(), Some("smb.csi.k8s.io"));
        assert_eq!(named_in(&words("kubernetes.io/csi: attacher failed")), None);
    }
}
