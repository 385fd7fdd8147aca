//! The identity of a machine, and the programs that run on it.

use std::path::PathBuf;

/// The identity of a machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// The name of its Node object.
    pub name: String,
    /// The cloud's number of the instance.
    pub instance: u64,
    /// The loopback address on which its kubelet listens; one per machine.
    pub address: String,
    /// kubelet's credentials.
    pub kubeconfig: PathBuf,
}

/// A program on a machine.
#[derive(Clone, Debug)]
pub enum Program {
    /// containerd, with the image imported.
    Containerd,
    /// The kubelet.
    Kubelet,
    /// The CSI node plugin of this folder.
    CsiNode,
    /// reattach's agent, in a mount namespace of its own as its container would have.
    Agent {
        /// The binary.
        binary: PathBuf,
        /// Its arguments after `--host-root`.
        arguments: Vec<String>,
        /// Its credentials.
        kubeconfig: PathBuf,
    },
    /// Any shell script.
    Other {
        /// Under which name it is started, logged and killed.
        name: String,
        /// The script.
        script: String,
    },
}

impl Program {
    /// The name of its log file.
    pub fn name(&self) -> &str {
        match self {
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::CsiNode => "csi-node",
            Self::Agent { .. } => "agent",
            Self::Other { name, .. } => name,
        }
    }
}
