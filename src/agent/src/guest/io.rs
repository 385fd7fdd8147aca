//! Requests in flight and write counters of disks (`Documentation/admin-guide/iostats.rst`,
//! `Documentation/ABI/stable/sysfs-block`): the only trace of a user inside the kernel that opened a device without a
//! claim and without a process.

use super::root::{HostRoot, Reader, names};
use std::collections::BTreeMap;

/// Counters of every disk at one moment. Two of them, some time apart, tell whether a disk is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, Result<Reading, String>>);

/// One disk's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reading {
    /// Writes completed, sectors written, discards completed.
    written: [u64; 3],
    /// Reads and writes in flight.
    in_flight: u64,
}

/// What two readings say of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Nothing was in flight at either, nothing was written in between.
    Quiet,
    /// Something was.
    Active,
    /// They could not be read or compared.
    Unknown(String),
}

impl Counters {
    /// Reads the counters of all disks. What cannot be read is remembered and makes no disk quiet.
    pub fn read(root: &HostRoot) -> Self {
        let mut reader = Reader::new(root);
        let disks = names(&root.join("/sys/block")).unwrap_or_default();
        Self(disks.into_iter().map(|disk| (disk.clone(), reading(&mut reader, &disk))).collect())
    }

    /// What happened on a disk between an earlier reading and this one.
    pub(crate) fn since(&self, earlier: &Self, disk: &str) -> Traffic {
        match (earlier.0.get(disk), self.0.get(disk)) {
            (Some(Ok(before)), Some(Ok(after))) => {
                let moved = before.written != after.written;
                if moved || before.in_flight + after.in_flight > 0 { Traffic::Active } else { Traffic::Quiet }
            }
            (Some(Err(why)), _) | (_, Some(Err(why))) => Traffic::Unknown(why.clone()),
            (None, _) | (_, None) => Traffic::Unknown(format!("/sys/block/{disk}/stat: read only once")),
        }
    }
}

fn reading(reader: &mut Reader<'_>, disk: &str) -> Result<Reading, String> {
    let stat = numbers(reader, &format!("/sys/block/{disk}/stat"))?;
    let in_flight = numbers(reader, &format!("/sys/block/{disk}/inflight"))?;
    // Discards are there since Linux 4.18.
    let field = |n: usize| stat.get(n).copied().unwrap_or_default();
    Ok(Reading { written: [field(4), field(6), field(11)], in_flight: in_flight.iter().sum() })
}

fn numbers(reader: &mut Reader<'_>, file: &str) -> Result<Vec<u64>, String> {
    let text = reader.text(file).ok_or_else(|| format!("{file}: cannot be read"))?;
    let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
    match numbers {
        Ok(numbers) if numbers.len() >= 2 => Ok(numbers),
        _ => Err(format!("{file}: not what the kernel's manual says")),
    }
}
