//! SCSI Vital Product Data pages as sysfs shows them (`/sys/block/NAME/device/vpd_pg80`, `vpd_pg83`).
//!
//! The layout is that of SPC-4: 7.8.5 (Device Identification, page 0x83) and 7.8.12 (Unit Serial Number, page 0x80).

/// Why a page could not be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VpdError {
    /// Too short for its own header.
    #[error("malformed VPD page: {0} bytes are less than its header")]
    Header(usize),
    /// Another page than the one that was asked for.
    #[error("malformed VPD page: it says that it is page {found:#04x}, not {expected:#04x}")]
    Page {
        /// What its second byte says.
        found: u8,
        /// What was asked for.
        expected: u8,
    },
    /// It ends before its own length says.
    #[error("malformed VPD page: it ends at byte {len}, its length fields say {expected}")]
    Truncated {
        /// Bytes that are there.
        len: usize,
        /// Bytes that should be there.
        expected: usize,
    },
    /// A name that is marked as text holds something else.
    #[error("malformed VPD page: a name in it is marked as text and is none")]
    NotText,
}

/// What kind of name a designator is (SPC-4 table 607). Sorted by how well it serves as a volume's identity: clouds
/// put the volume's name into the vendor-specific one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DesignatorKind {
    /// Type 0. Linode: the volume's label.
    VendorSpecific,
    /// Type 1, without the eight bytes of T10 vendor ID that it begins with.
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
    /// What kind of name.
    pub kind: DesignatorKind,
    /// The name: text as it stands without padding, binary as lower-case hexadecimal.
    pub value: String,
}

/// The names of the logical unit in a Device Identification page (0x83), best first. Names of target ports and kinds
/// that identify nothing are left out.
///
/// # Errors
/// [`VpdError`] if the page is not what it says it is.
pub fn designators(page: &[u8]) -> Result<Vec<Designator>, VpdError> {
    let mut rest = body(page, 0x83)?;
    let mut found = Vec::new();
    while let [code_set, flags, _, len, tail @ ..] = rest {
        let len = usize::from(*len);
        let Some(raw) = tail.get(..len) else {
            return Err(VpdError::Truncated { len: page.len(), expected: page.len() - tail.len() + len });
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
            let value =
                if text { printable(raw)? } else { Some(hex(raw)).filter(|digits| !digits.is_empty()) };
            found.extend(value.map(|value| Designator { kind, value }));
        }
        rest = tail.get(len..).unwrap_or_default();
    }
    if !rest.is_empty() {
        return Err(VpdError::Truncated { len: page.len(), expected: page.len() - rest.len() + 4 });
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The serial number in a Unit Serial Number page (0x80); `None` if it is blank.
///
/// # Errors
/// [`VpdError`] if the page is not what it says it is.
pub fn unit_serial(page: &[u8]) -> Result<Option<String>, VpdError> {
    printable(body(page, 0x80)?)
}

/// The bytes behind the four-byte header, as many as it says.
fn body(page: &[u8], expected: u8) -> Result<&[u8], VpdError> {
    let [_, found, high, low, rest @ ..] = page else {
        return Err(VpdError::Header(page.len()));
    };
    if *found != expected {
        return Err(VpdError::Page { found: *found, expected });
    }
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    rest.get(..len).ok_or(VpdError::Truncated { len: page.len(), expected: len + 4 })
}

/// Text up to its first NUL and without padding; `None` if that is blank.
fn printable(raw: &[u8]) -> Result<Option<String>, VpdError> {
    let raw = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(raw).map_err(|_| VpdError::NotText)?.trim();
    if text.chars().any(char::is_control) {
        return Err(VpdError::NotText);
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn hex(raw: &[u8]) -> String {
    raw.iter().map(|byte| format!("{byte:02x}")).collect()
}
