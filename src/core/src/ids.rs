//! Identifiers as newtypes, so that a node name can never be passed where an instance ID is meant.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps an identifier as the API that issued it spells it.
            pub fn new(value: impl Into<String>) -> Self {
                Self(value.into())
            }

            /// The identifier as its API spells it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), self.0)
            }
        }

        impl From<&str> for $name {
            fn from(value: &str) -> Self {
                Self(value.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(value: String) -> Self {
                Self(value)
            }
        }
    };
}

id!(
    /// The name of a Kubernetes Node. It says nothing about which machine stands behind it: a recycled or re-created
    /// node keeps its name. Compare [`InstanceId`]s to tell machines apart.
    NodeName
);
id!(
    /// A cloud's own identifier of a virtual machine (Linode: decimal number; EC2: `i-…`).
    InstanceId
);
id!(
    /// A cloud's own identifier of a block volume (Linode: decimal number; EC2: `vol-…`).
    VolumeId
);
id!(
    /// `metadata.uid` of a Kubernetes object. A re-created object has another one.
    Uid
);
id!(
    /// `metadata.resourceVersion` of a Kubernetes object: opaque, compared for equality only.
    ResourceVersion
);
id!(
    /// The Linux boot ID (`/proc/sys/kernel/random/boot_id`, Node `status.nodeInfo.bootID`). Changes at every boot.
    BootId
);
id!(
    /// The name of a PersistentVolume.
    PvName
);
id!(
    /// The name of a CSI driver, such as `linodebs.csi.linode.com`.
    DriverName
);
id!(
    /// A CSI volume handle (`spec.csi.volumeHandle` of a PersistentVolume).
    VolumeHandle
);
id!(
    /// A cluster's name in a cloud's tags (EKS: the cluster's name; LKE: `lke<number>`). Text of whoever wrote the tag.
    CloudCluster
);
id!(
    /// A short hash that names one exact plan: 16 hexadecimal digits.
    PlanHash
);

/// A namespaced object's name, printed as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: String,
    /// The name inside the namespace.
    pub name: String,
}

impl ObjectName {
    /// Names an object in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The number of a step in a plan, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StepIx(pub u32);

impl StepIx {
    /// As an index into [`crate::plan::Plan::steps`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for StepIx {
    /// People count from 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0 + 1)
    }
}
