//! Archives that the kernel unpacks into its first file system (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::path::{Component, Path};

/// An archive in the format `newc`.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an executable file with this absolute path, and the folders that it lies in.
    pub(crate) fn program(&mut self, path: &Path, content: &[u8]) {
        let parts: Vec<&str> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => name.to_str(),
                _ => None,
            })
            .collect();
        for depth in 1..parts.len() {
            let folder = parts[..depth].join("/");
            if self.folders.insert(folder.clone()) {
                self.entry(&folder, 0o040_755, &[]);
            }
        }
        self.entry(&parts.join("/"), 0o100_755, content);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let length = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        // Inode, mode, owner, group, links, time, size, device and node numbers, length of the name, check sum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_kernels_format() {
        let mut archive = Archive::default();
        archive.program(Path::new("/a/b"), b"12345");
        archive.program(Path::new("/a/c"), b"");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let mut rest = &bytes[..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            assert_eq!(&rest[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, length) = (field(1), field(6), field(11));
            let name = std::str::from_utf8(&rest[110..110 + length - 1])
                .unwrap()
                .to_owned();
            let start = (110 + length).next_multiple_of(4);
            found.push((name, mode, rest[start..start + size].to_vec()));
            rest = &rest[(start + size).next_multiple_of(4)..];
        }
        let expected = [
            ("a", 0o040_755, &b""[..]),
            ("a/b", 0o100_755, b"12345"),
            ("a/c", 0o100_755, b""),
            ("TRAILER!!!", 0, b""),
        ];
        assert_eq!(
            found,
            expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec()))
        );
    }
}
