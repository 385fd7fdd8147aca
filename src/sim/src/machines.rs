//! Machines whose power the cloud decides: a shutdown ends a kubelet, a boot (ordered, or the watchdog's) starts it.
//!
//! Without this, simulated nodes are switched by their tests alone, and what the cloud's API is asked for changes only
//! what the API says.

use std::collections::BTreeMap;
use std::time::Duration;

use reattach_cloud_simulator::{CloudSim, InstanceStatus};

use crate::cloud::{Power, instance_no};
use crate::kubelet::SimKubelet;

/// How often the cloud is looked at: well below anything that kubelet does, and seldom enough for hours.
const LOOK: Duration = Duration::from_millis(100);

/// An instance as the cloud last showed it.
#[derive(Clone, PartialEq)]
struct Seen {
    status: InstanceStatus,
    boots: u32,
}

fn look(cloud: &CloudSim, machine: &SimKubelet) -> Option<Seen> {
    let instance = cloud.instance(instance_no(machine.instance())?)?;
    Some(Seen {
        status: instance.status,
        boots: instance.boots,
    })
}

/// Follows the cloud's power of these machines until the task is dropped; `told` hears of each change, after a loss of
/// power and after a boot.
pub async fn follow(cloud: CloudSim, machines: Vec<SimKubelet>, told: impl Fn(&SimKubelet, Power)) {
    let mut seen: BTreeMap<String, Option<Seen>> = machines
        .iter()
        .map(|m| (m.instance().to_owned(), look(&cloud, m)))
        .collect();
    loop {
        tokio::time::sleep(LOOK).await;
        for machine in &machines {
            let now = look(&cloud, machine);
            let before = seen
                .insert(machine.instance().to_owned(), now.clone())
                .flatten();
            if before == now {
                continue;
            }
            // What a test recycles comes back by the test's own hand.
            if machine.is_being_recycled() {
                continue;
            }
            let boots_before = before.map_or(0, |seen| seen.boots);
            match now {
                None
                | Some(Seen {
                    status: InstanceStatus::Offline,
                    ..
                }) => {
                    machine.power_lost();
                    told(machine, Power::Off);
                }
                // A machine that its own test switched on has no boot of the cloud's.
                Some(Seen {
                    status: InstanceStatus::Running,
                    boots,
                }) if boots > boots_before => {
                    // One that was rebooted in order was never seen to be off.
                    machine.power_lost();
                    machine.power_on();
                    told(machine, Power::On);
                }
                _ => {}
            }
        }
    }
}
