//! Parses SCSI Vital Product Data pages from sysfs (`/sys/block/NAME/device/vpd_pg80`, `vpd_pg83`).
//!
//! The layout is that of SPC-4: 7.8.5 (Device Identification, page 0x83) and 7.8.12 (Unit Serial Number, page 0x80).

/// A page that could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VpdError {
    /// The page is shorter than its header.
    #[error("malformed VPD page: {0} bytes are less than its header")]
    Header(usize),
    /// The file has another page than the expected one.
    #[error("malformed VPD page: it says that it is page {found:#04x}, not {expected:#04x}")]
    Page {
        /// Page number in its second byte.
        found: u8,
        /// Expected page number.
        expected: u8,
    },
    /// The page is shorter than its length fields.
    #[error("malformed VPD page: it ends at byte {len}, its length fields say {expected}")]
    Truncated {
        /// Number of bytes in the page.
        len: usize,
        /// Number of bytes by the length fields.
        expected: usize,
    },
    /// A name that is marked as text is no text.
    #[error("malformed VPD page: a name in it is marked as text and is none")]
    NotText,
}

/// The kind of a designator (SPC-4 table 607). The order is the preference as a volume's identity: clouds put the volume's
/// name into the vendor-specific one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DesignatorKind {
    /// Type 0. Linode: the volume's label.
    VendorSpecific,
    /// Type 1, without its first eight bytes, the T10 vendor ID.
    T10,
    /// Type 3, in hexadecimal.
    Naa,
    /// Type 2, in hexadecimal.
    Eui64,
    /// Type 8.
    ScsiName,
}

/// One name of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Designator {
    /// Kind of the name.
    pub kind: DesignatorKind,
    /// The name: text without padding, or binary data as lower-case hexadecimal digits.
    pub value: String,
}

/// Returns the names of the logical unit in a Device Identification page (0x83), best first. Names of target ports and kinds
/// that identify nothing are left out.
///
/// # Errors
/// [`VpdError`] if the page is malformed.
pub fn designators(page: &[u8]) -> Result<Vec<Designator>, VpdError> {
    let mut rest = body(page, 0x83)?;
    let mut found = Vec::new();
    while let [code_set, flags, _, len, tail @ ..] = rest {
        let len = usize::from(*len);
        let Some(raw) = tail.get(..len) else {
            return Err(VpdError::Truncated {
                len: page.len(),
                expected: page.len() - tail.len() + len,
            });
        };
        let association = (flags >> 4) & 0b11;
        let text = matches!(code_set & 0x0f, 2 | 3);
        let named = match flags & 0x0f {
            0 => Some((DesignatorKind::VendorSpecific, raw)),
            1 => raw.get(8..).map(|specific| (DesignatorKind::T10, specific)),
            2 => Some((DesignatorKind::Eui64, raw)),
            3 => Some((DesignatorKind::Naa, raw)),
            8 => Some((DesignatorKind::ScsiName, raw)),
            _ => None,
        };
        if let (0, Some((kind, raw))) = (association, named) {
            let value = if text {
                printable(raw)?
            } else {
                Some(hex(raw)).filter(|digits| !digits.is_empty())
            };
            found.extend(value.map(|value| Designator { kind, value }));
        }
        rest = tail.get(len..).unwrap_or_default();
    }
    if !rest.is_empty() {
        return Err(VpdError::Truncated {
            len: page.len(),
            expected: page.len() - rest.len() + 4,
        });
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Returns the serial number in a Unit Serial Number page (0x80). `None`: it is blank.
///
/// # Errors
/// [`VpdError`] if the page is malformed.
pub fn unit_serial(page: &[u8]) -> Result<Option<String>, VpdError> {
    printable(body(page, 0x80)?)
}

/// Returns the bytes after the four-byte header, as many as the header says.
fn body(page: &[u8], expected: u8) -> Result<&[u8], VpdError> {
    let [_, found, high, low, rest @ ..] = page else {
        return Err(VpdError::Header(page.len()));
    };
    if *found != expected {
        return Err(VpdError::Page {
            found: *found,
            expected,
        });
    }
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    rest.get(..len).ok_or(VpdError::Truncated {
        len: page.len(),
        expected: len + 4,
    })
}

/// Returns the text up to its first NUL, without padding. `None`: it is blank.
fn printable(raw: &[u8]) -> Result<Option<String>, VpdError> {
    let raw = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(raw)
        .map_err(|_| VpdError::NotText)?
        .trim();
    if text.chars().any(char::is_control) {
        return Err(VpdError::NotText);
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn hex(raw: &[u8]) -> String {
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}
