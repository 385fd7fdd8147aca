//! Helpers of the tests of the AWS provider.
#![allow(dead_code, reason = "each test binary uses a part")]

use futures::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use reattach_aws::{AwsConfig, AwsProvider};
use reattach_cloud_simulator::{
    CloudSim, DetachBehaviour, ErrorBody, Fault, FaultRule, InstanceNo, NewInstance, NewVolume,
    Operation, VolumeNo, When, clock,
    ec2::{instance_id, volume_id},
    in_memory,
};
use reattach_core::{
    ids::{InstanceId, VolumeId},
    product::Product,
    proof::FenceProof,
};
use reattach_provider_api::{
    DetachOutcome, DetachRequest, Provider, ProviderError,
    conformance::{CloudFault, Fixture, Harness},
};
use std::time::Duration;

pub const VOLUME: VolumeNo = VolumeNo(0x17);
pub const HOLDER: InstanceNo = InstanceNo(0x42);
pub const OTHER: InstanceNo = InstanceNo(0x43);
/// The unattached volume of mixed-up answers.
pub const FREE_VOLUME: VolumeNo = VolumeNo(0x18);

/// Identifier of the access key, which is the simulated cloud's token.
pub const KEY: &str = "AKIAIOSFODNN7EXAMPLE";
/// Secret of the access key.
pub const SECRET: &str = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY";

/// The time at which every simulated cloud of these tests starts.
pub fn start() -> Timestamp {
    "2021-07-11T01:13:00Z".parse().expect("a time")
}

pub fn config(url: &str) -> AwsConfig {
    AwsConfig::fixed("eu-central-1", url, KEY, SECRET)
        .expect("a configuration")
        .for_product(Product::Controller)
}

pub fn volume() -> VolumeId {
    VolumeId::new(volume_id(VOLUME))
}

pub fn instance(number: InstanceNo) -> InstanceId {
    InstanceId::new(instance_id(number))
}

/// A cloud with one volume attached to one of two instances, on tokio's clock.
pub fn cloud() -> CloudSim {
    let sim = CloudSim::new(clock::tokio_from(start())).with_seed(1);
    for (id, label) in [(HOLDER, "node-1"), (OTHER, "node-2")] {
        let mut new = NewInstance::new(label).with_id(id.0);
        (new.region, new.watchdog_enabled) = ("eu-central-1a".to_owned(), false);
        sim.create_instance(new).expect("an instance");
    }
    let mut new = NewVolume::new("pvc1").with_id(VOLUME.0);
    new.region = "eu-central-1a".to_owned();
    sim.create_volume(new).expect("a volume");
    sim.attach_now_with(VOLUME, HOLDER, true)
        .expect("an attachment");
    sim
}

/// A provider over a simulated cloud in memory.
pub struct Aws {
    pub sim: CloudSim,
    pub provider: AwsProvider,
}

impl Aws {
    pub fn new() -> Self {
        let sim = cloud();
        let provider = AwsProvider::new(in_memory(sim.clone()), config("http://127.0.0.1"));
        Self { sim, provider }
    }

    pub async fn detach(&self) -> Result<DetachOutcome, ProviderError> {
        let proof = self.proof(&volume(), &instance(HOLDER));
        self.provider
            .detach(DetachRequest::plain(proof, Duration::from_secs(30)))
            .await
    }

    /// Returns the decoded forms of the requests that arrived, without the parameters that all of them have.
    pub fn sent(&self) -> Vec<String> {
        self.sim
            .requests()
            .iter()
            .map(|r| r.body.replace("&Version=2016-11-15", ""))
            .collect()
    }

    pub fn on_detach(&self, fault: Fault) {
        self.sim
            .add_fault(FaultRule::new([Operation::DetachVolume], fault).times(1));
    }

    fn on_every_detach(&self, fault: Fault) {
        self.sim
            .add_fault(FaultRule::new([Operation::DetachVolume], fault));
    }

    /// Freezes reads at the present state, and delays the next detach until they are no longer frozen.
    fn late_detach(&self) {
        self.sim.freeze_reads(Duration::from_secs(1));
        self.on_detach(Fault::Latency {
            before_ms: 2_000,
            after_ms: 0,
        });
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a short time")
}

pub fn bad_gateway(when: When) -> Fault {
    Fault::Error {
        status: 502,
        reason: String::new(),
        when,
        body: ErrorBody::Html,
    }
}

const READS: [Operation; 3] = [
    Operation::ListVolumes,
    Operation::ListInstances,
    Operation::ListSnapshots,
];

const MUTATIONS: [Operation; 4] = [
    Operation::DetachVolume,
    Operation::ShutdownInstance,
    Operation::BootInstance,
    Operation::CreateSnapshot,
];

impl Harness for Aws {
    fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    fn fixture(&self) -> Fixture {
        Fixture {
            volume: volume(),
            holder: instance(HOLDER),
            other: instance(OTHER),
            no_volume: volume_id(VolumeNo(0x999)).into(),
            no_instance: instance_id(InstanceNo(0x998)).into(),
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
            CloudFault::Locked | CloudFault::LockedUnseen => unreachable!("EC2 has no such locks"),
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
            CloudFault::Unattached { .. } => sim.make_lost(VOLUME).expect("lost"),
            CloudFault::DetachedMeanwhile => {
                self.late_detach();
                sim.make_lost(VOLUME).expect("lost");
            }
            CloudFault::MovedMeanwhile => {
                self.late_detach();
                sim.make_orphan(VOLUME, OTHER).expect("moved");
            }
            CloudFault::VolumeGone => {
                sim.make_lost(VOLUME).expect("lost");
                sim.delete_volume(VOLUME).expect("deleted");
            }
            CloudFault::InstanceGone => sim.delete_instance(HOLDER).expect("deleted"),
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
                let tags = |all: &[(&str, &str)]| {
                    all.iter()
                        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                        .collect()
                };
                let volume = tags(&[
                    ("CSIVolumeName", "pvc-7"),
                    ("kubernetes.io/cluster/lke7", "owned"),
                    ("kubernetes.io/created-for/pv/name", "pvc-7"),
                    ("kubernetes.io/created-for/pvc/name", "data"),
                    ("kubernetes.io/created-for/pvc/namespace", "shop"),
                ]);
                sim.set_volume_tags(VOLUME, volume).expect("tagged");
                let machine = tags(&[
                    ("eks:cluster-name", "lke7"),
                    ("kubernetes.io/cluster/lke7", "owned"),
                ]);
                sim.set_instance_tags(HOLDER, machine).expect("tagged");
            }
            CloudFault::WrongAccount => sim.add_foreign_token(KEY),
            CloudFault::NoRights => sim.add_token(
                KEY,
                &[
                    "ec2:DescribeVolumes",
                    "ec2:DescribeInstances",
                    "ec2:DescribeSnapshots",
                ],
            ),
            CloudFault::BadCredential => sim.add_token("AKIAANOTHER", &["*"]),
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

    fn true_holder(&self, wanted: &VolumeId) -> Option<InstanceId> {
        assert_eq!(*wanted, volume());
        self.sim.volume(VOLUME).and_then(|v| v.holder).map(instance)
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

    fn inapplicable(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "locked",
                "EC2 has no locks on volumes that its staff lift: a detach is accepted or refused for its state",
            ),
            (
                "locked_unseen",
                "EC2 has no locks on volumes that its staff lift",
            ),
            (
                "finished_job",
                "EC2 keeps no history of jobs: a detach that is over leaves nothing behind",
            ),
        ]
    }
}
