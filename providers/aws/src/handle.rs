//! Converts Kubernetes' names of AWS's objects: CSI volume handles `vol-…` and provider IDs `aws:///ZONE/i-…`.

use reattach_core::ids::{DriverName, InstanceId, VolumeHandle, VolumeId};
use reattach_provider_api::HandleError;

/// Name of the EBS CSI driver.
pub const DRIVER: &str = "ebs.csi.aws.com";

/// Key of a volume's zone in a PersistentVolume's node affinity.
/// Source: aws-ebs-csi-driver `pkg/driver/constants.go`, `ZoneTopologyKey`.
pub(crate) const TOPOLOGY_KEY: &str = "topology.ebs.csi.aws.com/zone";

/// Prefix of a Node's `spec.providerID` at AWS.
pub const PROVIDER_ID_PREFIX: &str = "aws://";

/// Returns the volume of a handle. At EBS the handle is the volume's identifier.
pub(crate) fn volume(
    driver: &DriverName,
    handle: &VolumeHandle,
) -> Option<Result<VolumeId, HandleError>> {
    if driver.as_str() != DRIVER {
        return None;
    }
    let text = handle.as_str();
    Some(if is_volume(text) {
        Ok(VolumeId::new(text))
    } else {
        Err(HandleError::new(
            "volume handle",
            text,
            "expected vol- and 8 or 17 hexadecimal digits",
        ))
    })
}

/// Returns the instance of a provider ID, `aws:///<zone>/i-…`. Nodes that are no EC2 instances (Fargate, HyperPod) have IDs
/// of another form, which are refused.
pub(crate) fn instance(provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
    let tail = provider_id.strip_prefix(PROVIDER_ID_PREFIX)?;
    let id = match tail.split('/').collect::<Vec<_>>()[..] {
        ["", zone, id] if !zone.is_empty() && is_instance(id) => Some(id),
        _ => None,
    };
    let why = "expected aws:///<zone>/i- and 8 or 17 hexadecimal digits";
    Some(
        id.map(InstanceId::new)
            .ok_or_else(|| HandleError::new("provider ID", provider_id, why)),
    )
}

/// Returns whether a text is a volume's identifier in EC2's spelling.
pub(crate) fn is_volume(text: &str) -> bool {
    text.strip_prefix("vol-").is_some_and(is_number)
}

/// Returns whether a text is an instance's identifier in EC2's spelling.
pub(crate) fn is_instance(text: &str) -> bool {
    text.strip_prefix("i-").is_some_and(is_number)
}

/// Returns whether a text has 17 hexadecimal digits, or 8 as in resources from before 2018.
fn is_number(text: &str) -> bool {
    matches!(text.len(), 8 | 17)
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles() {
        let ours = DriverName::from(DRIVER);
        for good in ["vol-0123456789abcdef0", "vol-1234abcd"] {
            assert_eq!(volume(&ours, &good.into()), Some(Ok(good.into())), "{good}");
        }
        for bad in [
            "",
            "vol-",
            "vol-xyz",
            "vol-0123456789ABCDEF0",
            "vol-0123456789abcdef",
            "vol-0123456789abcdef00",
            "0123456789abcdef0",
            "vol-0123456789abcdef*",
            "localdisk://nvme1",
            " vol-1234abcd",
        ] {
            let error = volume(&ours, &bad.into()).expect("ours").expect_err(bad);
            assert!(
                error
                    .to_string()
                    .starts_with(&format!("volume handle {bad:?} cannot be used: "))
            );
        }
        assert_eq!(
            volume(&"linodebs.csi.linode.com".into(), &"vol-1234abcd".into()),
            None
        );
    }

    #[test]
    fn provider_ids() {
        let good = "aws:///eu-central-1a/i-0123456789abcdef0";
        assert_eq!(instance(good), Some(Ok("i-0123456789abcdef0".into())));
        for bad in [
            "aws://",
            "aws:///",
            "aws:///eu-central-1a/",
            "aws:////i-0123456789abcdef0",
            "aws:///eu-central-1a/i-xyz",
            "aws:///eu-central-1a/fargate-ip-10-0-0-1.ec2.internal",
            "aws:///usw2-az1/sagemaker/cluster/hyperpod-i-0123456789abcdef0",
            "aws://eu-central-1a/i-0123456789abcdef0",
        ] {
            assert!(instance(bad).expect("ours").is_err(), "{bad}");
        }
        for foreign in ["linode://1", "", "i-0123456789abcdef0", "kind://aws"] {
            assert_eq!(instance(foreign), None, "{foreign}");
        }
    }
}
