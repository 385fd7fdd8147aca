//! The simulated cloud's refusals in EC2's codes and sentences.

use super::{
    id,
    reply::{Refusal, coded},
};
use crate::model::OpError;

/// A refusal in EC2's words where its list of error codes has them, otherwise in words of this simulator.
impl From<OpError> for Refusal {
    fn from(error: OpError) -> Self {
        let message = error.to_string();
        match error {
            OpError::NoVolume(volume) => {
                let message = format!("The volume '{}' does not exist.", id::volume(volume));
                Self::new(400, "InvalidVolume.NotFound", message)
            }
            OpError::NoInstance(instance) => {
                let message = format!(
                    "The instance ID '{}' does not exist",
                    id::instance(instance)
                );
                Self::new(400, "InvalidInstanceID.NotFound", message)
            }
            OpError::AlreadyAttached { volume, .. } => {
                let message = format!("{} is already attached to an instance", id::volume(volume));
                Self::new(400, "VolumeInUse", message)
            }
            OpError::NotAttached(volume) => {
                let message = format!(
                    "Volume '{}' is in the 'available' state.",
                    id::volume(volume)
                );
                Self::new(400, "IncorrectState", message)
            }
            OpError::NotHeldBy { volume, instance } => {
                let (volume, instance) = (id::volume(volume), id::instance(instance));
                let message =
                    format!("The volume '{volume}' is not attached to instance '{instance}'.");
                Self::new(400, "InvalidAttachment.NotFound", message)
            }
            OpError::OtherRegion { volume, instance } => {
                let (volume, instance) = (id::volume(volume), id::instance(instance));
                let message = format!(
                    "The volume '{volume}' is not in the same availability zone as instance '{instance}'"
                );
                Self::new(400, "InvalidVolume.ZoneMismatch", message)
            }
            OpError::WrongPower { instance, status } => {
                let message = format!(
                    "The instance '{}' is in the '{status}' state.",
                    id::instance(instance)
                );
                Self::new(400, "IncorrectInstanceState", message)
            }
            OpError::Busy | OpError::Locked { .. } => Self::new(400, "IncorrectState", message),
            OpError::Refused { status, reason } => coded(status, &reason),
            OpError::Taken(_) => Self::new(400, "InvalidParameterValue", message),
        }
    }
}
