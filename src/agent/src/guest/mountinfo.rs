//! Parses `/proc/PID/mountinfo`, `/proc/swaps` and `/proc/PID/maps` (proc_pid_mountinfo(5), proc_swaps(5),
//! proc_pid_maps(5)).

use std::fmt;
use std::str::FromStr;

/// A device number, printed as `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dev {
    /// Major number. 0: a filesystem without its own block device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
}

impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Dev {
    type Err = MalformedLine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').ok_or(MalformedLine)?;
        let number = |digits: &str| digits.parse().map_err(|_| MalformedLine);
        Ok(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

/// A line that does not follow the manual page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line is not what the kernel's manual says")]
pub struct MalformedLine;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mount {
    /// Mount point, relative to the root of the process of the table.
    pub point: String,
    /// `st_dev` of files on the mount.
    pub dev: Dev,
    /// Path inside the filesystem that is mounted.
    pub root: String,
    /// Type of the filesystem.
    pub fs_type: String,
    /// Source, as given at the mount.
    pub source: String,
    /// Whether the mount or the filesystem itself is read-only.
    pub read_only: bool,
}

/// Parses all mounts of a table. Returns the good lines also when others are malformed.
pub fn parse(table: &[u8]) -> (Vec<Mount>, Result<(), MalformedLine>) {
    let mut mounts = Vec::new();
    let mut all_good = Ok(());
    for line in table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        match parse_line(line) {
            Some(mount) => mounts.push(mount),
            None => all_good = Err(MalformedLine),
        }
    }
    (mounts, all_good)
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [OPTIONAL…] - TYPE SOURCE SUPER_OPTIONS`; SOURCE may be empty.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let dev = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
    let read_only = |options: &[u8]| {
        options
            .split(|byte| *byte == b',')
            .any(|option| option == b"ro")
    };
    Some(Mount {
        dev,
        root: unescape(fields.get(3)?),
        point: unescape(fields.get(4)?),
        fs_type: unescape(fields.get(dash + 1)?),
        source: unescape(fields.get(dash + 2)?),
        read_only: read_only(fields.get(5)?) || read_only(fields.get(dash + 3)?),
    })
}

/// One line of `/proc/swaps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// Path of the swap device or file.
    pub path: String,
    /// Whether it is a device. Otherwise it is a file, whose filesystem shows by its mount.
    pub is_device: bool,
}

/// Parses the swap areas in `/proc/swaps`. Returns the good lines also when others are malformed.
pub fn parse_swaps(table: &[u8]) -> (Vec<Swap>, Result<(), MalformedLine>) {
    let mut swaps = Vec::new();
    let mut all_good = Ok(());
    for line in table
        .split(|byte| *byte == b'\n')
        .skip(1)
        .filter(|line| !line.is_empty())
    {
        let mut fields = line
            .split(|byte| matches!(byte, b' ' | b'\t'))
            .filter(|field| !field.is_empty());
        match (fields.next(), fields.next()) {
            (Some(path), Some(kind)) => swaps.push(Swap {
                path: unescape(path),
                is_device: kind != b"file",
            }),
            _ => all_good = Err(MalformedLine),
        }
    }
    (swaps, all_good)
}

/// A file that a process has mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// `st_dev` of the file.
    pub dev: Dev,
    /// Path of the file from the process's root, without the mark of a deleted file.
    pub path: String,
}

/// Parses the file mappings in `/proc/PID/maps`. Successive mappings of one file are returned once. Returns the good lines
/// also when others are malformed.
pub fn parse_maps(table: &[u8]) -> (Vec<Mapping>, Result<(), MalformedLine>) {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut all_good = Ok(());
    for line in table
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        match parse_map(line) {
            Some(Some(mapping)) if mappings.last() != Some(&mapping) => mappings.push(mapping),
            Some(_) => {}
            None => all_good = Err(MalformedLine),
        }
    }
    (mappings, all_good)
}

/// `ADDRESS PERMS OFFSET MAJOR:MINOR INODE      PATH`, the device in hexadecimal. `Some(None)` for anonymous memory.
fn parse_map(line: &[u8]) -> Option<Option<Mapping>> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let dev = std::str::from_utf8(fields.nth(3)?).ok()?;
    let (major, minor) = dev.split_once(':')?;
    let number = |digits| u32::from_str_radix(digits, 16).ok();
    let dev = Dev {
        major: number(major)?,
        minor: number(minor)?,
    };
    if fields.next()? == b"0" {
        return Some(None);
    }
    let path = unescape(fields.next().unwrap_or_default().trim_ascii_start());
    let path = path.strip_suffix(" (deleted)").unwrap_or(&path).to_owned();
    Some(Some(Mapping { dev, path }))
}

/// Decodes the kernel's octal escapes (`\040` is a space). All other bytes do not change; invalid UTF-8 becomes U+FFFD.
fn unescape(field: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match tail {
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] if *first == b'\\' => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
