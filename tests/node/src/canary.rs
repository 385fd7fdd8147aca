//! The writes of canaries, and whether two ever wrote at the same time.

use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One record of `image/canary.c`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Nanoseconds of the computer's monotonic clock, which all machines share.
    pub at: u64,
    /// The pod's UID.
    pub pod: String,
    /// The node's name.
    pub node: String,
    /// Counted from 0 by each process.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub wall: u64,
    /// Why the volume did not take it (errno); none: the volume acknowledged it.
    pub error: Option<i32>,
}

/// Records in the order of the clock.
#[derive(Clone, Debug, Default)]
pub struct Stamps(pub Vec<Stamp>);

impl Stamps {
    /// Every record in a text. A last line without end is left out: it is being written.
    ///
    /// # Errors
    /// Anything that is no record: the volume lost or mixed up what was written.
    pub fn parse(text: &str) -> Result<Self> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut all = whole.lines().map(record).collect::<Result<Vec<_>>>()?;
        all.sort();
        Ok(Self(all))
    }

    /// Every record in a raw block device: one per sector of 512 bytes, until the first that is empty.
    ///
    /// # Errors
    /// As [`Stamps::parse`].
    pub fn parse_sectors(bytes: &[u8]) -> Result<Self> {
        let used = bytes
            .chunks(512)
            .take_while(|sector| sector.starts_with(b"ok "));
        let text: Vec<_> = used
            .map(|sector| String::from_utf8_lossy(&sector[..sector.len().min(128)]))
            .collect();
        Self::parse(&text.concat())
    }

    /// The records that canaries on a machine wrote beside their volumes: every file in its console folder.
    ///
    /// # Errors
    /// As [`Stamps::parse`].
    pub fn consoles(folders: &[impl AsRef<Path>]) -> Result<Self> {
        let mut all = Vec::new();
        for folder in folders {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                all.extend(
                    Self::parse(&fs::read_to_string(&path)?)
                        .with_context(|| path.display().to_string())?
                        .0,
                );
            }
        }
        all.sort();
        Ok(Self(all))
    }

    /// The records that the volume acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Stamp> {
        self.0.iter().filter(|s| s.error.is_none())
    }

    /// Each writer with its first and last acknowledged record, in the order of the first.
    pub fn writers(&self) -> Vec<(String, Stamp, Stamp)> {
        let mut of: BTreeMap<String, (Stamp, Stamp)> = BTreeMap::new();
        for stamp in self.acknowledged() {
            let key = format!("{}/{}", stamp.node, stamp.pod);
            of.entry(key)
                .and_modify(|(_, last)| *last = stamp.clone())
                .or_insert((stamp.clone(), stamp.clone()));
        }
        let mut all: Vec<_> = of
            .into_iter()
            .map(|(writer, (first, last))| (writer, first, last))
            .collect();
        all.sort_by_key(|(_, first, _)| first.at);
        all
    }

    /// Checks that writers came one after another: each began after the one before had its last write acknowledged. Gives how
    /// many there were.
    ///
    /// # Errors
    /// Two that overlap, or none at all.
    pub fn one_after_another(&self) -> Result<usize> {
        let writers = self.writers();
        for pair in writers.windows(2) {
            let ((one, _, last), (other, first, _)) = (&pair[0], &pair[1]);
            if first.at <= last.at {
                bail!(
                    "{other} wrote at {} ns while {one} wrote until {} ns",
                    first.at,
                    last.at
                );
            }
        }
        if writers.is_empty() {
            bail!("nobody wrote anything");
        }
        Ok(writers.len())
    }

    /// Checks that everything acknowledged is in `volume`, which was read later. Gives how many records that were.
    ///
    /// # Errors
    /// Lost writes.
    pub fn all_in(&self, volume: &Self) -> Result<usize> {
        let found: BTreeSet<&Stamp> = volume.0.iter().collect();
        let missing: Vec<_> = self.acknowledged().filter(|s| !found.contains(s)).collect();
        if let Some(first) = missing.first() {
            bail!(
                "{} acknowledged records are not on the volume; the first: {first:?}",
                missing.len()
            );
        }
        Ok(self.acknowledged().count())
    }
}

fn record(line: &str) -> Result<Stamp> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let (kind, rest) = fields
        .split_first()
        .with_context(|| format!("an empty record: {line:?}"))?;
    let number = |text: &str| {
        text.parse::<u64>()
            .with_context(|| format!("no record: {line:?}"))
    };
    match (*kind, rest) {
        ("ok", [node, pod, count, at, wall]) => Ok(Stamp {
            at: number(at)?,
            pod: (*pod).to_owned(),
            node: (*node).to_owned(),
            number: number(count)?,
            wall: number(wall)?,
            error: None,
        }),
        ("error", [node, pod, count, at, wall, errno]) => Ok(Stamp {
            at: number(at)?,
            pod: (*pod).to_owned(),
            node: (*node).to_owned(),
            number: number(count)?,
            wall: number(wall)?,
            error: Some(
                errno
                    .parse()
                    .with_context(|| format!("no record: {line:?}"))?,
            ),
        }),
        _ => bail!("no record: {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(node: &str, pod: &str, number: u64, at: u64) -> String {
        format!("{:<127}\n", format!("ok {node} {pod} {number} {at} {at}"))
    }

    #[test]
    fn writers_that_overlap_are_found() {
        let good = [
            line("n1", "a", 0, 1),
            line("n1", "a", 1, 2),
            line("n2", "b", 0, 3),
        ]
        .concat();
        assert_eq!(
            Stamps::parse(&good)
                .expect("records")
                .one_after_another()
                .expect("in order"),
            2
        );
        let bad = [
            line("n1", "a", 0, 1),
            line("n2", "b", 0, 2),
            line("n1", "a", 1, 3),
        ]
        .concat();
        let said = Stamps::parse(&bad)
            .expect("records")
            .one_after_another()
            .expect_err("they overlap")
            .to_string();
        assert!(
            said.contains("n2/b wrote at 2 ns while n1/a wrote until 3 ns"),
            "{said}"
        );
        assert!(Stamps::default().one_after_another().is_err());
    }

    #[test]
    fn lost_writes_are_found() {
        let console = Stamps::parse(&[line("n1", "a", 0, 1), line("n1", "a", 1, 2)].concat())
            .expect("records");
        let volume = Stamps::parse(&line("n1", "a", 0, 1)).expect("a record");
        assert_eq!(console.all_in(&console).expect("all there"), 2);
        assert!(
            console
                .all_in(&volume)
                .expect_err("one is missing")
                .to_string()
                .contains("number: 1")
        );
        assert!(Stamps::parse("garbage\n").is_err());
    }
}
