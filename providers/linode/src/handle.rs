//! Converts Kubernetes' names of Linode's objects: CSI volume handles `<id>-<label>` and provider IDs `linode://<id>`.

use reattach_core::cloud::CloudVolume;
use reattach_core::ids::{DriverName, InstanceId, VolumeHandle, VolumeId};
use reattach_provider_api::{HandleError, ProviderError};

/// Name of the provider.
pub const NAME: &str = "linode";

/// Name of Linode's CSI driver.
pub const DRIVER: &str = "linodebs.csi.linode.com";

/// Key of a volume's region in a PersistentVolume's node affinity.
/// Source: linode-blockstorage-csi-driver `internal/driver/driver.go`, `VolumeTopologyRegion`.
pub(crate) const TOPOLOGY_KEY: &str = "topology.linode.com/region";

/// Prefix of a Node's `spec.providerID` at Linode.
pub const PROVIDER_ID_PREFIX: &str = "linode://";

/// Returns the volume of a handle: the number before the first dash. The label after the dash may be an old one.
///
/// A handle that does not begin with a number is refused: Linode's driver hashes such a handle, for its own tests, and the
/// hash is no number of a volume.
pub(crate) fn volume(
    driver: &DriverName,
    handle: &VolumeHandle,
) -> Option<Result<VolumeId, HandleError>> {
    if driver.as_str() != DRIVER {
        return None;
    }
    let (head, label) = handle
        .as_str()
        .split_once('-')
        .unwrap_or((handle.as_str(), ""));
    Some(if label.is_empty() {
        Err(HandleError::new(
            "volume handle",
            handle.as_str(),
            "expected <volume number>-<label>",
        ))
    } else {
        number(head)
            .map(|id| VolumeId::new(id.to_string()))
            .ok_or_else(|| {
                HandleError::new(
                    "volume handle",
                    handle.as_str(),
                    "it does not begin with a volume number",
                )
            })
    })
}

/// Returns the handle that the driver gives to a new volume: its number and label, as the API shows them.
pub(crate) fn canonical(volume: &CloudVolume) -> VolumeHandle {
    VolumeHandle::new(format!("{}-{}", volume.id, volume.label))
}

/// Returns the volume that the driver would use for a handle: the number before the first dash, in any spelling that Go's
/// `strconv.Atoi` accepts, otherwise the 32-bit FNV-1a hash of the handle.
/// Source: linode-blockstorage-csi-driver `pkg/linode-volumes/utils.go`, `VolumeIdAsInt`.
pub(crate) fn as_driver_reads(driver: &DriverName, handle: &VolumeHandle) -> Option<VolumeId> {
    if driver.as_str() != DRIVER || handle.as_str().is_empty() {
        return None;
    }
    let head = handle.as_str().split_once('-').map(|(head, _)| head);
    let number = head.and_then(|head| head.parse::<i64>().ok());
    let number = number.unwrap_or_else(|| i64::from(fnv1a(handle.as_str())));
    Some(VolumeId::new(number.to_string()))
}

fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

/// Returns the instance of a provider ID.
pub(crate) fn instance(provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
    let tail = provider_id.strip_prefix(PROVIDER_ID_PREFIX)?;
    Some(
        number(tail)
            .map(|id| InstanceId::new(id.to_string()))
            .ok_or_else(|| {
                HandleError::new(
                    "provider ID",
                    provider_id,
                    "expected linode://<instance number>",
                )
            }),
    )
}

/// Parses a positive decimal number in the API's only spelling (no sign, no leading zero).
pub(crate) fn number(text: &str) -> Option<u64> {
    let number = text.parse::<u64>().ok()?;
    (number > 0 && number.to_string() == text).then_some(number)
}

/// Parses a number as [`number`] does. Otherwise returns the error of `operation`: nothing was sent.
pub(crate) fn require_number(operation: &str, text: &str) -> Result<u64, ProviderError> {
    number(text).ok_or_else(|| {
        ProviderError::not_applied(operation, "the identifier is not a number, as Linode's are")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles() {
        let ours = DriverName::from(DRIVER);
        for (handle, id) in [
            ("17-pvcbb1d06139b334c1f", "17"),
            ("9007199254740993-a", "9007199254740993"),
            ("5-a-b-c", "5"),
        ] {
            assert_eq!(
                volume(&ours, &handle.into()),
                Some(Ok(id.into())),
                "{handle}"
            );
        }
        for handle in [
            "",
            "-",
            "17",
            "17-",
            "-17",
            "pvc-17",
            "+17-a",
            "017-a",
            "0-a",
            "1e3-a",
            "99999999999999999999-a",
        ] {
            let error = volume(&ours, &handle.into())
                .expect("ours")
                .expect_err(handle);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("volume handle {handle:?} cannot be used: "))
            );
        }
        assert_eq!(volume(&"ebs.csi.aws.com".into(), &"17-a".into()), None);
    }

    #[test]
    fn the_drivers_own_handle_leads_back_to_its_volume() {
        use reattach_core::cloud::{DeviceIdentity, VolumeState};
        let described = |label: &str| CloudVolume {
            id: "17".into(),
            label: label.to_owned(),
            region: "eu-central".to_owned(),
            size_gib: 10,
            holders: Vec::new(),
            state: VolumeState::Active,
            identity: DeviceIdentity {
                serial: label.to_owned(),
            },
            owner: Default::default(),
        };
        let handle = canonical(&described("pvc-bb1d"));
        assert_eq!(handle.as_str(), "17-pvc-bb1d");
        assert_eq!(
            volume(&DriverName::from(DRIVER), &handle),
            Some(Ok("17".into()))
        );
        assert_ne!(canonical(&described("renamed")), handle);
    }

    #[test]
    fn other_spellings_lead_to_the_same_volume() {
        let ours = DriverName::from(DRIVER);
        for handle in ["17-pvc1", "17-", "17-x-y", "017-pvc1", "+17-pvc1"] {
            assert_eq!(
                as_driver_reads(&ours, &handle.into()),
                Some("17".into()),
                "{handle}"
            );
        }
        // FNV-1a of "foobar", from the reference's test suite.
        assert_eq!(
            as_driver_reads(&ours, &"foobar".into()),
            Some(0xbf9c_f968_u32.to_string().into())
        );
        assert_eq!(as_driver_reads(&ours, &"".into()), None);
        assert_eq!(
            as_driver_reads(&"ebs.csi.aws.com".into(), &"17-a".into()),
            None
        );
    }

    #[test]
    fn provider_ids() {
        assert_eq!(instance("linode://42"), Some(Ok("42".into())));
        for bad in [
            "linode://",
            "linode://x",
            "linode://42/",
            "linode:// 42",
            "linode://042",
        ] {
            assert!(instance(bad).expect("ours").is_err(), "{bad}");
        }
        for foreign in ["aws:///eu-central-1a/i-1", "", "42", "kind://linode"] {
            assert_eq!(instance(foreign), None, "{foreign}");
        }
    }
}
