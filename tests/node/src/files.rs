//! The files of a machine: its init script, the configuration of what runs on it, and its start scripts.

use crate::program::{MachineConfig, Program};
use crate::tools::{IMAGE, Tools};
use std::path::Path;

/// Program of process 1: it sets the machine up, says "ready", then starts and kills programs until its input ends, which is when
/// the power goes.
pub(crate) const INIT: &str = r#"
set -eu
folder=$1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount --bind "$folder/boot_id" /proc/sys/kernel/random/boot_id
# What is in memory is new at every boot.
mount -t tmpfs tmpfs /run
mkdir /run/lock
# The disk is not: these three survive.
mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /var/log
for part in lib/kubelet lib/containerd log/pods; do
    mkdir -p "/var/$part"
    mount --bind "$folder/disk/$part" "/var/$part"
done
mount --make-rshared /var/lib/kubelet
mkdir -p /dev/disk
mount -t tmpfs tmpfs /dev/disk
mkdir /dev/disk/by-id
mount --bind "$folder/by-id" /dev/disk/by-id
echo ready
while read -r verb name; do
    case $verb in
        start)
            setsid sh "$folder/start/$name" </dev/null >>"$folder/log/$name.log" 2>&1 &
            echo $! >"$folder/pid/$name.new"
            mv "$folder/pid/$name.new" "$folder/pid/$name"
            ;;
        kill)
            read -r pid <"$folder/pid/$name"
            kill -s KILL "$pid" || true
            rm "$folder/pid/$name"
            ;;
    esac
done
"#;

/// containerd for one machine. `restrict_oom_score_adj`: without CAP_SYS_RESOURCE runc could not lower it.
pub(crate) fn containerd(folder: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
restrict_oom_score_adj = true
sandbox_image = "{IMAGE}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{}"
"#,
        folder.join("cni").display()
    )
}

/// Pods have `hostNetwork`; kubelet asks for a network configuration all the same.
pub(crate) const CNI: &str =
    r#"{"cniVersion": "0.3.1", "name": "loopback", "plugins": [{"type": "loopback"}]}"#;

/// kubelet's configuration: stock, but for what a small shared computer without systemd cannot give.
pub(crate) fn kubelet(config: &MachineConfig) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {}
healthzPort: 0
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
podLogsDir: /var/log/pods
providerID: linode://{}
resolvConf: ""
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
evictionHard: {{memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%"}}
imageGCHighThresholdPercent: 100
"#,
        config.address, config.instance
    )
}

/// The shell script that becomes a program.
pub(crate) fn start(
    program: &Program,
    config: &MachineConfig,
    tools: &Tools,
    folder: &Path,
) -> String {
    let at = |name: &str| folder.join(name).display().to_string();
    match program {
        Program::Containerd => {
            // The image is brought in by the same script that starts it, so that both are there or neither.
            let ctr = "ctr --address /run/containerd/containerd.sock --namespace k8s.io images";
            format!(
                "containerd --config {} &\nuntil {ctr} import --no-unpack {} >/dev/null 2>&1; do sleep 0.1; done\ntouch /run/containerd/imported\nwait\n",
                at("containerd.toml"),
                tools.path("image.tar").display(),
            )
        }
        // As its unit would: after containerd. It gives up when it finds none.
        Program::Kubelet => format!(
            "until [ -e /run/containerd/imported ]; do sleep 0.1; done\nexec {} --config {} --kubeconfig {} --hostname-override {} --root-dir /var/lib/kubelet --cert-dir /var/lib/kubelet/pki -v 2\n",
            tools.kubelet.display(),
            at("kubelet.yaml"),
            config.kubeconfig.display(),
            config.name,
        ),
        Program::CsiNode => format!(
            "exec {} --node-id {} --switches {}\n",
            tools.path("csi-node").display(),
            config.instance,
            at("switches.json"),
        ),
        // As in the DaemonSet: the host's / below a folder of its own, with the host's later mounts coming in.
        Program::Agent {
            binary,
            arguments,
            kubeconfig,
        } => format!(
            r#"exec unshare --mount --propagation slave sh -ec '
mount --rbind / {host}
mount --make-rslave {host}
mount --bind {block} {host}/sys/block
mount --bind {numbers} {host}/sys/dev/block
KUBECONFIG={kubeconfig} exec {binary} --host-root {host} {arguments}'
"#,
            host = at("host"),
            block = at("sys/block"),
            numbers = at("sys/dev-block"),
            kubeconfig = kubeconfig.display(),
            binary = binary.display(),
            arguments = arguments.join(" "),
        ),
        Program::Other { script, .. } => format!("{script}\n"),
    }
}
