//! Helpers of the tests of the Linode provider.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod contract;

use contract::Contract;
use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reattach_cloud_simulator::{
    CloudSim, DetachBehaviour, ErrorBody, Fault, FaultRule, InstanceNo, NewInstance, NewVolume,
    Operation, UnattachedDetach, VolumeNo, When, clock, in_memory,
};
use reattach_core::{
    ids::{InstanceId, VolumeId},
    product::Product,
    proof::FenceProof,
};
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_provider_api::{
    Provider,
    conformance::{CloudFault, Fixture, Harness},
};
use std::time::Duration;

pub const VOLUME: VolumeNo = VolumeNo(17);
pub const HOLDER: InstanceNo = InstanceNo(42);
pub const OTHER: InstanceNo = InstanceNo(43);
/// The unattached volume of mixed-up answers.
pub const FREE_VOLUME: VolumeNo = VolumeNo(18);

/// The time at which every simulated cloud of these tests starts.
pub fn start() -> Timestamp {
    "2021-07-11T01:13:00Z".parse().expect("a time")
}

pub fn config(url: &str) -> LinodeConfig {
    LinodeConfig::new(Token::new("a-token").expect("a token"), Some(url))
        .expect("a configuration")
        .for_product(Product::Controller)
}

/// A cloud with one volume attached to one of two instances, on tokio's clock. The attachment survives boots, so that a case
/// may power the holder off and on.
pub fn cloud() -> CloudSim {
    let sim = CloudSim::new(clock::tokio_from(start())).with_seed(1);
    for (id, label) in [(HOLDER, "node-1"), (OTHER, "node-2")] {
        sim.create_instance(NewInstance::new(label).with_id(id.0))
            .expect("an instance");
    }
    sim.create_volume(NewVolume::new("pvc1").with_id(VOLUME.0))
        .expect("a volume");
    sim.attach_now_with(VOLUME, HOLDER, true)
        .expect("an attachment");
    sim
}

/// A provider over a simulated cloud in memory. All requests are checked against the API description.
pub struct Linode {
    pub sim: CloudSim,
    pub contract: Contract,
    pub provider: LinodeProvider,
}

impl Linode {
    pub fn new() -> Self {
        Self::over(cloud(), Contract::load())
    }

    pub fn over(sim: CloudSim, contract: Contract) -> Self {
        let transport = contract.watch(in_memory(sim.clone()));
        let provider = LinodeProvider::new(transport, config("http://127.0.0.1"));
        Self {
            sim,
            contract,
            provider,
        }
    }

    pub fn detaches(&self) -> usize {
        self.sim
            .requests()
            .iter()
            .filter(|r| r.operation == Some(Operation::DetachVolume))
            .count()
    }

    fn on_detach(&self, fault: Fault) {
        self.sim
            .add_fault(FaultRule::new([Operation::DetachVolume], fault).times(1));
    }

    fn on_every_detach(&self, fault: Fault) {
        self.sim
            .add_fault(FaultRule::new([Operation::DetachVolume], fault));
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a short time")
}

fn bad_gateway(when: When) -> Fault {
    Fault::Error {
        status: 502,
        reason: String::new(),
        when,
        body: ErrorBody::Html,
    }
}

const READS: [Operation; 5] = [
    Operation::ListVolumes,
    Operation::DescribeVolume,
    Operation::ListInstances,
    Operation::DescribeInstance,
    Operation::ListJobs,
];

const MUTATIONS: [Operation; 4] = [
    Operation::DetachVolume,
    Operation::UpdateInstance,
    Operation::ShutdownInstance,
    Operation::BootInstance,
];

impl Harness for Linode {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn fixture(&self) -> Fixture {
        Fixture {
            volume: VolumeId::new(VOLUME.to_string()),
            holder: InstanceId::new(HOLDER.to_string()),
            other: InstanceId::new(OTHER.to_string()),
            no_volume: "999".into(),
            no_instance: "998".into(),
        }
    }

    fn inject(&self, fault: CloudFault) {
        let sim = &self.sim;
        match fault {
            CloudFault::Slow(time) => {
                let fault = Fault::Latency {
                    before_ms: milliseconds(time),
                    after_ms: 0,
                };
                sim.add_fault(FaultRule::new([], fault));
            }
            CloudFault::Locked => sim.lock_volume(VOLUME, "migration", true).expect("locked"),
            CloudFault::LockedUnseen => {
                sim.lock_volume(VOLUME, "migration", false).expect("locked")
            }
            CloudFault::Busy => sim
                .make_busy(VOLUME, Duration::from_secs(600))
                .expect("busy"),
            CloudFault::DetachStuck => sim
                .set_detach(VOLUME, DetachBehaviour::Stuck)
                .expect("stuck"),
            CloudFault::ThrottledDetach { retry_after } => {
                let retry_after_seconds =
                    retry_after.map(|d| u32::try_from(d.as_secs()).expect("short"));
                self.on_every_detach(Fault::Throttle {
                    retry_after_seconds,
                });
            }
            CloudFault::ErrorBeforeEffect => self.on_detach(bad_gateway(When::BeforeEffect)),
            CloudFault::ErrorAfterEffect => self.on_detach(bad_gateway(When::AfterEffect)),
            CloudFault::EveryErrorAfterEffect => {
                sim.add_fault(FaultRule::new(MUTATIONS, bad_gateway(When::AfterEffect)));
            }
            CloudFault::CutAfterEffect => self.on_detach(Fault::Cut {
                when: When::AfterEffect,
            }),
            CloudFault::CutBeforeEffect => self.on_detach(Fault::Cut {
                when: When::BeforeEffect,
            }),
            CloudFault::ForeignSuccess => self.on_detach(Fault::BadSuccess {
                body: ErrorBody::Html,
            }),
            CloudFault::StaleReads => sim.freeze_reads(Duration::from_secs(600)),
            CloudFault::WrongHolder => sim.make_orphan(VOLUME, OTHER).expect("moved"),
            CloudFault::Unattached { forgiving } => {
                sim.make_lost(VOLUME).expect("lost");
                let strict = UnattachedDetach::NotFound;
                sim.set_unattached_detach(if forgiving {
                    UnattachedDetach::Succeeds
                } else {
                    strict
                });
            }
            CloudFault::DetachedMeanwhile => {
                // The read shows the present state; the detach arrives when reads are no longer frozen.
                sim.freeze_reads(Duration::from_secs(1));
                sim.make_lost(VOLUME).expect("lost");
                sim.set_unattached_detach(UnattachedDetach::BadRequest);
                self.on_detach(Fault::Latency {
                    before_ms: 2_000,
                    after_ms: 0,
                });
            }
            CloudFault::MovedMeanwhile => {
                sim.freeze_reads(Duration::from_secs(1));
                sim.make_orphan(VOLUME, OTHER).expect("moved");
                self.on_detach(Fault::Latency {
                    before_ms: 2_000,
                    after_ms: 0,
                });
            }
            CloudFault::MixedUp => {
                sim.create_volume(NewVolume::new("another").with_id(FREE_VOLUME.0))
                    .expect("a volume");
                let fault = Fault::OtherObject {
                    volume: FREE_VOLUME,
                    instance: OTHER,
                };
                sim.add_fault(FaultRule::new([], fault));
            }
            CloudFault::Tagged => {
                let tags = || {
                    [
                        ("lke7".to_owned(), String::new()),
                        ("web".to_owned(), String::new()),
                    ]
                    .into()
                };
                sim.set_volume_tags(VOLUME, tags()).expect("tagged");
                sim.set_instance_tags(HOLDER, tags()).expect("tagged");
            }
            CloudFault::WrongAccount => sim.add_foreign_token("a-token"),
            CloudFault::VolumeGone => {
                sim.make_lost(VOLUME).expect("lost");
                sim.delete_volume(VOLUME).expect("deleted");
            }
            CloudFault::InstanceGone => sim.delete_instance(HOLDER).expect("deleted"),
            CloudFault::NoRights => {
                sim.add_token(
                    "a-token",
                    &["volumes:read_only", "linodes:read_only", "events:read_only"],
                );
            }
            CloudFault::BadCredential => sim.add_token("another-token", &["*"]),
            CloudFault::ReadFailsOnce => {
                sim.add_fault(FaultRule::new(READS, bad_gateway(When::BeforeEffect)).times(1));
            }
            CloudFault::ReadsFail => {
                sim.add_fault(FaultRule::new(READS, bad_gateway(When::BeforeEffect)));
            }
        }
    }

    fn proof(&self, volume: &VolumeId, holder: &InstanceId) -> FenceProof {
        reattach_provider_api::conformance::proof::handshake(volume, holder, self.sim.now())
    }

    fn true_holder(&self, volume: &VolumeId) -> Option<InstanceId> {
        let number = volume.as_str().parse().expect("a number");
        self.sim
            .volume(number)
            .and_then(|v| v.holder)
            .map(|id| InstanceId::new(id.to_string()))
    }

    fn mutations(&self) -> usize {
        self.sim
            .requests()
            .iter()
            .filter(|r| r.is_mutation())
            .count()
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        tokio::time::sleep(Duration::from_secs(60)).boxed()
    }

    fn now(&self) -> Timestamp {
        self.sim.now()
    }
}
