//! The kind of cloud under a simulated cluster: its names, tags and device serials.

use reattach_cloud_simulator::{
    InstanceNo, NewInstance, NewVolume, Volume, VolumeNo,
    ec2::{instance_id, volume_id},
};

/// The number of the simulated cluster at LKE: the founding incident's.
const LKE_CLUSTER: u64 = 13311;

/// The name of the simulated cluster at EKS.
const EKS_CLUSTER: &str = "shop";

/// How a cloud's CSI driver, volumes and instances are spelled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ground {
    /// Linode: `linodebs.csi.linode.com`, `7-pvc1`, `linode://7`.
    #[default]
    Linode,
    /// EBS volumes and EC2 instances: `ebs.csi.aws.com`, `vol-…`, `aws:///ZONE/i-…`.
    Ebs,
}

impl Ground {
    /// The CSI driver's name.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Linode => "linodebs.csi.linode.com",
            Self::Ebs => "ebs.csi.aws.com",
        }
    }

    /// The handle that the driver gives a volume of this number and label.
    #[must_use]
    pub fn handle(self, number: VolumeNo, label: &str) -> String {
        match self {
            Self::Linode => format!("{number}-{label}"),
            Self::Ebs => volume_id(number),
        }
    }

    /// A volume with the tags that it gets from the driver, or from the StorageClass of people who tag their volumes, when
    /// it is made for this PersistentVolume and claim. What writes which tag: `wire.rs` of the two providers.
    #[must_use]
    pub fn tagged(self, volume: NewVolume, pv: &str, namespace: &str, claim: &str) -> NewVolume {
        match self {
            Self::Linode => volume.with_tags([
                (format!("lke{LKE_CLUSTER}"), ""),
                ("block-storage".to_owned(), ""),
            ]),
            Self::Ebs => volume
                .with_tags([
                    ("CSIVolumeName", pv),
                    ("KubernetesCluster", EKS_CLUSTER),
                    ("ebs.csi.aws.com/cluster-name", EKS_CLUSTER),
                    ("kubernetes.io/created-for/pv/name", pv),
                    ("kubernetes.io/created-for/pvc/name", claim),
                    ("kubernetes.io/created-for/pvc/namespace", namespace),
                ])
                .with_tags([(format!("kubernetes.io/cluster/{EKS_CLUSTER}"), "owned")]),
        }
    }

    /// An instance with what the cloud's Kubernetes service writes on it when it makes it as a node.
    #[must_use]
    pub fn node(self, mut instance: NewInstance) -> NewInstance {
        match self {
            Self::Linode => {
                instance.lke_cluster_id = Some(LKE_CLUSTER);
                instance
            }
            Self::Ebs => instance
                .with_tags([("eks:cluster-name", EKS_CLUSTER)])
                .with_tags([(format!("kubernetes.io/cluster/{EKS_CLUSTER}"), "owned")]),
        }
    }

    /// The serial that the device of a volume reports. EBS: the volume's ID without its dash.
    #[must_use]
    pub fn serial(self, volume: &Volume) -> String {
        match self {
            Self::Linode => volume.label.clone(),
            Self::Ebs => volume_id(volume.id).replacen('-', "", 1),
        }
    }

    /// The cloud's own identifier of an instance, which is also the CSI node ID.
    #[must_use]
    pub fn instance(self, number: InstanceNo) -> String {
        match self {
            Self::Linode => number.to_string(),
            Self::Ebs => instance_id(number),
        }
    }

    /// `spec.providerID` of the instance's Node.
    #[must_use]
    pub fn provider_id(self, number: InstanceNo) -> String {
        match self {
            Self::Linode => format!("linode://{number}"),
            Self::Ebs => format!("aws:///eu-central-1a/{}", instance_id(number)),
        }
    }
}

/// The volume behind a handle or an identifier of any cloud.
#[must_use]
pub fn volume_no(text: &str) -> Option<VolumeNo> {
    let number = match text.strip_prefix("vol-") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => crate::names::id_of(text).parse().ok(),
    };
    number.map(VolumeNo)
}

/// The instance behind an identifier of any cloud.
#[must_use]
pub fn instance_no(text: &str) -> Option<InstanceNo> {
    let number = match text.strip_prefix("i-") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    };
    number.map(InstanceNo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leads_back_to_its_number() {
        for ground in [Ground::Linode, Ground::Ebs] {
            assert_eq!(
                volume_no(&ground.handle(VolumeNo(7001), "pvc1")),
                Some(VolumeNo(7001))
            );
            assert_eq!(
                instance_no(&ground.instance(InstanceNo(5001))),
                Some(InstanceNo(5001))
            );
        }
        assert_eq!(
            Ground::Ebs.handle(VolumeNo(0x1b59), "pvc1"),
            "vol-00000000000001b59"
        );
        assert_eq!(instance_no("node-1"), None);
        assert_eq!(volume_no("vol-x"), None);
    }
}
