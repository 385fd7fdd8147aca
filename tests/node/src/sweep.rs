//! Removes leftovers of a killed test.

use crate::tools::run;
use anyhow::Result;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The ending of every volume's file; the number of the test's process precedes it.
pub(crate) const VOLUME: &str = ".reattach-volume";

/// Detaches loop devices over volumes' files of processes that are gone, and removes their containers' cgroups and files.
///
/// # Errors
/// A list of loop devices that cannot be had.
pub fn sweep() -> Result<()> {
    let columns = [
        "--list",
        "--noheadings",
        "--raw",
        "--output",
        "NAME,BACK-INO,BACK-FILE",
    ];
    let listed = run("losetup", &columns)?;
    let loops: Vec<(&str, &str, &str)> = listed
        .lines()
        .filter_map(|line| {
            let (device, rest) = line.split_once(' ')?;
            let (inode, file) = rest.split_once(' ')?;
            Some((device, inode, file))
        })
        .collect();
    for (device, _, file) in &loops {
        let Some(name) = file
            .trim_end_matches("(deleted)")
            .trim_end()
            .strip_suffix(VOLUME)
        else {
            continue;
        };
        if name.rsplit('.').next().is_some_and(is_over) {
            let node = fs::metadata(device)
                .map(|m| m.ino().to_string())
                .unwrap_or_default();
            // First the mounts that kubelet has put above it. Another process may sweep at the same moment: errors do not matter.
            for (above, ..) in loops
                .iter()
                .filter(|(_, inode, file)| *inode == node && !file.ends_with(VOLUME))
            {
                let _ = run("losetup", &["--detach", above]);
            }
            let _ = run("losetup", &["--detach", device]);
        }
    }
    // Folders of the control plane tier's kind, kept for their logs; containers' files are none.
    for folder in list(&std::env::temp_dir().display().to_string()) {
        let owner = folder
            .rsplit_once("/reattach-cp-")
            .and_then(|(_, rest)| rest.split('-').next());
        if !owner.is_some_and(is_over) {
            continue;
        }
        for machine in list(&format!("{folder}/reattach")) {
            let containerd = Path::new(&machine).join("disk/lib/containerd");
            if containerd.exists() {
                remove_cgroups(&containerd);
                let _ = fs::remove_dir_all(&containerd);
            }
        }
    }
    Ok(())
}

/// Whether a process is gone, or dead and only not waited for.
fn is_over(pid: &str) -> bool {
    let Ok(pid) = pid.parse::<u32>() else {
        return false;
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

fn list(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    folders.map(|e| e.path().display().to_string()).collect()
}

/// Removes the cgroups of the containers that a machine's containerd knew, which are named as the containers are. An empty parent,
/// `k8s.io`, stays: another machine may be about to use it.
pub(crate) fn remove_cgroups(containerd: &Path) {
    let known = containerd.join("io.containerd.runtime.v2.task/k8s.io");
    for container in list(&known.display().to_string()) {
        let id = container.rsplit('/').next().unwrap_or_default().to_owned();
        // Of every controller (version 1) or of the one tree (version 2).
        remove_tree(&format!("/sys/fs/cgroup/k8s.io/{id}"));
        for controller in list("/sys/fs/cgroup") {
            remove_tree(&format!("{controller}/k8s.io/{id}"));
        }
    }
}

/// A cgroup cannot be emptied, only removed, the innermost first; one that is gone already is none of our trouble.
fn remove_tree(cgroup: &str) {
    for inner in list(cgroup) {
        remove_tree(&inner);
    }
    let _ = fs::remove_dir(cgroup);
}
