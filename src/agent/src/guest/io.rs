//! Reads requests in flight and write counters of disks (`Documentation/admin-guide/iostats.rst`,
//! `Documentation/ABI/stable/sysfs-block`). Only they show a user inside the kernel that opened a device without a claim
//! and without a process.

use super::root::{HostRoot, Reader, names};
use std::collections::BTreeMap;

/// Counters of all disks at one time. Two of these, some time apart, show whether a disk is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, Result<Reading, String>>);

/// Counters of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Writes completed, sectors written, discards completed.
    written: [u64; 3],
    /// Reads and writes in flight.
    in_flight: u64,
}

/// The traffic of a disk between two reads of its counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// No request was in flight at either read, and nothing was written between them.
    Quiet,
    /// A request was in flight, or something was written.
    Active,
    /// The counters could not be read or compared.
    Unknown(String),
}

impl Counters {
    /// Reads the counters of all disks. A disk whose counters cannot be read never counts as quiet.
    pub fn read(root: &HostRoot) -> Self {
        let mut reader = Reader::new(root);
        let disks = names(&root.join("/sys/block")).unwrap_or_default();
        Self(
            disks
                .into_iter()
                .map(|disk| (disk.clone(), reading(&mut reader, &disk)))
                .collect(),
        )
    }

    /// Returns the traffic of a disk between an earlier read and this one.
    pub(crate) fn since(&self, earlier: &Self, disk: &str) -> Traffic {
        match (earlier.0.get(disk), self.0.get(disk)) {
            (Some(Ok(before)), Some(Ok(after))) => {
                let moved = before.written != after.written;
                if moved || before.in_flight + after.in_flight > 0 {
                    Traffic::Active
                } else {
                    Traffic::Quiet
                }
            }
            (Some(Err(why)), _) | (_, Some(Err(why))) => Traffic::Unknown(why.clone()),
            (None, _) | (_, None) => {
                Traffic::Unknown(format!("/sys/block/{disk}/stat: read only once"))
            }
        }
    }
}

fn reading(reader: &mut Reader<'_>, disk: &str) -> Result<Reading, String> {
    let stat = numbers(reader, &format!("/sys/block/{disk}/stat"))?;
    let in_flight = numbers(reader, &format!("/sys/block/{disk}/inflight"))?;
    // The discards exist since Linux 4.18.
    let field = |n: usize| stat.get(n).copied().unwrap_or_default();
    Ok(Reading {
        written: [field(4), field(6), field(11)],
        in_flight: in_flight.iter().sum(),
    })
}

fn numbers(reader: &mut Reader<'_>, file: &str) -> Result<Vec<u64>, String> {
    let text = reader
        .text(file)
        .ok_or_else(|| format!("{file}: cannot be read"))?;
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    match numbers {
        Ok(numbers) if numbers.len() >= 2 => Ok(numbers),
        _ => Err(format!("{file}: not what the kernel's manual says")),
    }
}
