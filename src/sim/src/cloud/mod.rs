//! The cloud simulator as a simulated cluster sees it: the cloud's API and the machines ([`SimulatedCloud`]), and the CSI
//! controller over that API ([`LinodeCsi`]). There is no other simulated cloud.

mod csi;
mod ground;
mod simulator;

pub use csi::LinodeCsi;
pub(crate) use csi::{CsiCode, CsiError};
pub use ground::{Ground, instance_no, volume_no};
pub use simulator::{CloudApiError, CloudVolume, GuestDevice, Power, SimulatedCloud};
