//! Parsers of the kernel's binary and text formats.

// Helpers outside of test functions fail tests by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use common::page83;
use reattach_agent::guest::mountinfo::{Dev, Mapping, parse, parse_maps, parse_swaps};
use reattach_agent::guest::vpd::{Designator, DesignatorKind, VpdError, designators, unit_serial};

fn values(page: &[u8]) -> Vec<(DesignatorKind, String)> {
    designators(page)
        .unwrap()
        .into_iter()
        .map(|Designator { kind, value }| (kind, value))
        .collect()
}

#[test]
fn every_kind_of_designator_in_the_order_of_preference() {
    let page = page83(&[
        (3, 8, b"iqn.2001-04.com.example\0\0"),
        (1, 3, &[0x60, 0x01, 0x40, 0x5a]),
        (1, 2, &[0x00, 0x1b, 0x44, 0xff]),
        (2, 1, b"Google  disk-7  "),
        (2, 0, b"pvc0123 "),
        (1, 0x13, &[0x50, 0, 0, 1]), // association 1: a target port's, not the unit's
    ]);
    use DesignatorKind::{Eui64, Naa, ScsiName, T10, VendorSpecific};
    let expected = [
        (VendorSpecific, "pvc0123"),
        (T10, "disk-7"),
        (Naa, "6001405a"),
        (Eui64, "001b44ff"),
        (ScsiName, "iqn.2001-04.com.example"),
    ];
    assert_eq!(
        values(&page),
        expected.map(|(kind, value)| (kind, value.to_owned()))
    );
}

#[test]
fn blank_and_empty_names_are_no_names() {
    assert_eq!(
        values(&page83(&[(2, 0, b"    "), (2, 0, b""), (1, 3, b"")])),
        []
    );
    assert_eq!(values(&[0, 0x83, 0, 0]), []);
}

#[test]
fn bytes_behind_the_stated_length_are_ignored() {
    let mut page = page83(&[(2, 0, b"label")]);
    page.extend([0xff; 40]);
    assert_eq!(
        values(&page),
        [(DesignatorKind::VendorSpecific, "label".to_owned())]
    );
}

#[test]
fn malformed_pages_are_errors() {
    assert_eq!(designators(&[]), Err(VpdError::Header(0)));
    assert_eq!(
        designators(&[0, 0x80, 0, 0]),
        Err(VpdError::Page {
            found: 0x80,
            expected: 0x83
        })
    );
    let page = page83(&[(2, 0, b"label")]);
    assert_eq!(
        designators(&page[..page.len() - 1]),
        Err(VpdError::Truncated {
            len: 12,
            expected: 13
        })
    );
    // The page is whole, its designator reaches beyond it.
    assert_eq!(
        designators(&[0, 0x83, 0, 5, 2, 0, 0, 9, b'x']),
        Err(VpdError::Truncated {
            len: 9,
            expected: 17
        })
    );
    // Half a designator header.
    assert_eq!(
        designators(&[0, 0x83, 0, 2, 2, 0]),
        Err(VpdError::Truncated {
            len: 6,
            expected: 8
        })
    );
    assert_eq!(
        designators(&page83(&[(2, 0, b"a\x07b")])),
        Err(VpdError::NotText)
    );
    assert_eq!(
        designators(&page83(&[(2, 0, b"a\xffb")])),
        Err(VpdError::NotText)
    );
}

#[test]
fn serial_page() {
    assert_eq!(
        unit_serial(b"\0\x80\0\x08  ABC123"),
        Ok(Some("ABC123".to_owned()))
    );
    assert_eq!(unit_serial(b"\0\x80\0\x04    "), Ok(None));
    assert_eq!(
        unit_serial(b"\0\x80\0\x09short"),
        Err(VpdError::Truncated {
            len: 9,
            expected: 13
        })
    );
}

/// A pseudorandom generator (xorshift64*), so that a failure can be repeated.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
    }
}

#[test]
fn maps_as_the_kernel_prints_them() {
    let table = b"55d2b3a2c000-55d2b3a2e000 r--p 00000000 fe:00 1835268                    /usr/bin/with space\n\
        55d2b3a2e000-55d2b3a33000 r-xp 00002000 fe:00 1835268                    /usr/bin/with space\n\
        55d2b4f3a000-55d2b4f5b000 rw-p 00000000 00:00 0                          [heap]\n\
        7f1c0a000000-7f1c0a021000 rw-p 00000000 00:00 0 \n\
        7f1c0c600000-7f1c0c800000 rw-s 00000000 103:0a 12                        /srv/old\\012name (deleted)\n";
    let (mappings, all_good) = parse_maps(table);
    assert_eq!(all_good, Ok(()));
    let mapping = |major, minor, path: &str| Mapping {
        dev: Dev { major, minor },
        path: path.to_owned(),
    };
    assert_eq!(
        mappings,
        [
            mapping(254, 0, "/usr/bin/with space"),
            mapping(259, 10, "/srv/old\nname")
        ]
    );
    let (mappings, all_good) = parse_maps(b"nonsense\n7f-8f rw-p 0 08:00 5 /a\n");
    assert_eq!((mappings.len(), all_good.is_err()), (1, true));
}

#[test]
fn no_page_and_no_table_panics() {
    let good = page83(&[
        (2, 0, b"pvc0123"),
        (1, 3, &[0x60, 0x01]),
        (2, 1, b"Google  disk-7"),
    ]);
    let table = b"90 22 8:0 / /a\\040b rw shared:1 - ext4 /dev/sda rw,errors=continue\n".to_vec();
    let mut random = Bytes(0x9e37_79b9_7f4a_7c15);
    let mut understood = 0;
    for round in 0..200_000_u32 {
        let mut page = good.clone();
        let mut mounts = table.clone();
        for _ in 0..=round % 4 {
            let (at, byte) = (usize::from(random.next()), random.next());
            let len = page.len();
            page[at % len] = byte;
            let len = mounts.len();
            mounts[at % len] = byte;
        }
        page.truncate(page.len() - usize::from(random.next()) % 8 * usize::from(round % 3 == 0));
        understood += usize::from(designators(&page).is_ok());
        let _ = unit_serial(&page);
        let (parsed, all_good) = parse(&mounts);
        assert!(
            all_good.is_err() || !parsed.is_empty() || mounts.iter().all(|byte| *byte == b'\n')
        );
        let _ = parse_swaps(&mounts);
        let _ = parse_maps(&mounts);
    }
    // The damage must be small enough that later checks are reached too.
    assert!((20_000..190_000).contains(&understood), "{understood}");
}

#[test]
fn mountinfo_as_the_manual_has_it() {
    let table = b"36 35 98:0 /mnt1 /mnt/parent\\040dir\\011x\\134y rw,noatime master:1 shared:2 - ext3 /dev/root ro,errors=continue\n\
        37 35 0:45 / /empty rw - tmpfs tmpfs rw\n\
        38 35 0:46 / /none ro - tmpfs  rw\n\
        39 35 8:1 / /b\\303\\244r rw - ext4 /dev/sda1 rw\n";
    let (mounts, all_good) = parse(table);
    assert_eq!(mounts.len(), 4);
    assert_eq!(all_good, Ok(()));
    assert_eq!(mounts[0].point, "/mnt/parent dir\tx\\y");
    assert_eq!(
        mounts[0].dev,
        Dev {
            major: 98,
            minor: 0
        }
    );
    assert_eq!(
        (mounts[0].root.as_str(), mounts[0].fs_type.as_str()),
        ("/mnt1", "ext3")
    );
    assert!(
        mounts[0].read_only,
        "the filesystem is read-only although the mount is not"
    );
    assert_eq!((mounts[2].source.as_str(), mounts[2].read_only), ("", true));
    assert_eq!(mounts[3].point, "/bär");
    assert!(!mounts[3].read_only);
}

#[test]
fn a_bad_line_spoils_only_itself_and_is_reported() {
    let (mounts, all_good) =
        parse(b"1 0 8:0 / / rw - ext4 /dev/sda rw\nrubbish\n2 1 8:x / /a rw - ext4 s rw\n");
    assert_eq!(mounts.len(), 1);
    assert!(all_good.is_err());
}

#[test]
fn swaps_as_the_kernel_prints_them() {
    let table = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
        /dev/sda2                               partition\t1048572\t\t0\t\t-2\n\
        /swap\\040file                           file\t\t1048572\t\t0\t\t-3\n";
    let (swaps, all_good) = parse_swaps(table);
    assert_eq!(all_good, Ok(()));
    let seen: Vec<_> = swaps
        .iter()
        .map(|swap| (swap.path.as_str(), swap.is_device))
        .collect();
    assert_eq!(seen, [("/dev/sda2", true), ("/swap file", false)]);
    assert_eq!(parse_swaps(b"").0, []);
}
