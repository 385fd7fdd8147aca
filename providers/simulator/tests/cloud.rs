//! The rules of the simulated cloud: what each fault does to API and guests, and what the history shows.

use jiff::{SignedDuration, Timestamp};
use reattach_cloud_simulator::{
    CloudSim, DetachBehaviour, HoldSource, InstanceNo, InstanceStatus, JobStatus, ManualClock,
    NewInstance, NewVolume, OpError, UnattachedDetach, VolumeNo,
};
use std::time::Duration;

const A: InstanceNo = InstanceNo(1);
const B: InstanceNo = InstanceNo(2);
const V: VolumeNo = VolumeNo(10);

struct World {
    sim: CloudSim,
    clock: ManualClock,
    start: Timestamp,
}

impl World {
    /// Two running instances and a volume attached to the first.
    fn new() -> Self {
        let start: Timestamp = "2021-07-11T01:13:00Z".parse().expect("a time");
        let clock = ManualClock::new(start);
        let sim = CloudSim::new(clock.clock());
        for (id, label) in [(A, "node-a"), (B, "node-b")] {
            sim.create_instance(NewInstance::new(label).with_id(id.0))
                .expect("an instance");
        }
        sim.create_volume(NewVolume::new("vol").with_id(V.0))
            .expect("a volume");
        sim.attach_now(V, A).expect("attached");
        Self { sim, clock, start }
    }

    fn pass(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds));
    }

    fn after(&self, seconds: i64) -> Timestamp {
        self.start + SignedDuration::from_secs(seconds)
    }

    /// Returns the holder at the API, and whether each of the two guests has the device.
    fn shown(&self) -> (Option<InstanceNo>, bool, bool) {
        let holder = self.sim.volume(V).expect("the volume").holder;
        (
            holder,
            self.sim.guest_has_device(A, V),
            self.sim.guest_has_device(B, V),
        )
    }
}

#[test]
fn attach_and_detach_end_at_their_due_time() {
    let w = World::new();
    w.sim.detach(V).expect("accepted");
    w.pass(1);
    assert_eq!(w.shown(), (Some(A), true, false), "under way");
    // Nothing reads for a long while; the history still has the moment at which it ended.
    w.pass(1000);
    assert_eq!(w.shown(), (None, false, false));
    assert_eq!(w.sim.holder_intervals(V)[0].until, Some(w.after(2)));
    w.sim.attach(V, B).expect("free");
    assert_eq!(
        w.shown(),
        (Some(B), false, false),
        "the API names the holder at once"
    );
    assert!(!w.sim.volume(V).expect("the volume").io_ready);
    w.pass(2);
    assert_eq!(w.shown(), (Some(B), false, true));
    assert_eq!(w.sim.max_holders(V), 1);
    assert!(w.sim.jobs().iter().all(|j| j.status == JobStatus::Finished));
}

#[test]
fn a_recycled_node_is_a_phantom_holder() {
    let w = World::new();
    w.sim.recycle(A).expect("recycled");
    assert_eq!(w.shown(), (Some(A), false, false));
    assert_eq!(
        w.sim.instance(A).expect("a").status,
        InstanceStatus::Rebooting
    );
    w.pass(60);
    let a = w.sim.instance(A).expect("a");
    assert_eq!((a.status, a.boots), (InstanceStatus::Running, 2));
    assert_eq!(w.shown(), (Some(A), false, false), "never by itself");
    assert_eq!(
        w.sim.attach(V, A),
        Err(OpError::AlreadyAttached {
            volume: V,
            holder: A
        })
    );
    w.sim.detach(V).expect("accepted");
    w.pass(2);
    w.sim.attach(V, A).expect("free");
    w.pass(2);
    assert_eq!(w.shown(), (Some(A), true, false));
}

#[test]
fn a_reboot_drops_attachments_that_do_not_persist() {
    for (persist, expected) in [
        (false, (None, false, false)),
        (true, (Some(A), true, false)),
    ] {
        let w = World::new();
        w.sim.detach(V).expect("accepted");
        w.pass(2);
        w.sim.attach_with(V, A, persist).expect("free");
        w.pass(2);
        w.sim.reboot(A).expect("accepted");
        assert_eq!(w.sim.shutdown(A), Err(OpError::Busy));
        w.pass(600);
        assert_eq!(w.shown(), expected, "persist: {persist}");
    }
}

#[test]
fn the_watchdog_boots_only_after_a_stop_without_a_job() {
    let w = World::new();
    w.sim.kill(A).expect("killed");
    assert_eq!(
        w.sim.instance(A).expect("a").status,
        InstanceStatus::Offline
    );
    assert_eq!(
        w.shown(),
        (Some(A), false, false),
        "off, and still the holder"
    );
    w.pass(600);
    assert_eq!(
        w.sim.instance(A).expect("a").status,
        InstanceStatus::Running
    );

    w.sim.shutdown(B).expect("accepted");
    w.pass(6000);
    assert_eq!(
        w.sim.instance(B).expect("b").status,
        InstanceStatus::Offline
    );
    w.sim.boot(B).expect("accepted");
    w.pass(600);
    assert_eq!(
        w.sim.instance(B).expect("b").status,
        InstanceStatus::Running
    );
}

#[test]
fn a_power_cut_does_not_boot_an_instance_that_was_shut_down() {
    let w = World::new();
    let job = w.sim.shutdown_by_cloud(A).expect("accepted");
    assert_eq!(
        (job.by, w.sim.jobs().pop().and_then(|j| j.by)),
        (None, None)
    );
    w.pass(60);
    w.sim.kill(A).expect("nothing happens");
    w.pass(6000);
    assert_eq!(
        w.sim.instance(A).expect("a").status,
        InstanceStatus::Offline
    );
    w.sim.shutdown(B).expect("accepted");
    let by: Vec<_> = w.sim.jobs().into_iter().map(|j| j.by.is_some()).collect();
    assert_eq!(
        by.last(),
        Some(&true),
        "a requested shutdown names its user"
    );
}

#[test]
fn a_vanished_instance_is_still_named_as_the_holder() {
    let w = World::new();
    w.sim.vanish(A).expect("gone");
    assert_eq!(w.sim.instance(A), None);
    assert_eq!(w.shown(), (Some(A), false, false));
    assert_eq!(w.sim.max_holders(V), 1);
}

#[test]
fn lost_phantom_and_orphan() {
    let w = World::new();
    w.sim.make_phantom(V).expect("phantom");
    assert_eq!(w.shown(), (Some(A), false, false));
    w.sim.make_orphan(V, B).expect("orphan");
    assert_eq!(w.shown(), (Some(B), false, true));
    w.sim.make_lost(V).expect("lost");
    assert_eq!(w.shown(), (None, false, false));
}

#[test]
fn deleting_an_instance_frees_its_volumes() {
    let w = World::new();
    w.sim.delete_instance(A).expect("deleted");
    assert_eq!(w.shown(), (None, false, false));
    assert_eq!(w.sim.attach(V, A), Err(OpError::NoInstance(A)));
}

#[test]
fn locks_and_busy_refuse_attach_and_detach() {
    let w = World::new();
    w.sim.lock_volume(V, "migration", true).expect("locked");
    assert!(matches!(w.sim.detach(V), Err(OpError::Locked { .. })));
    assert_eq!(w.sim.volume(V).expect("the volume").locks, ["migration"]);
    w.pass(7200);
    assert!(
        matches!(w.sim.detach(V), Err(OpError::Locked { .. })),
        "a lock does not end by itself"
    );
    w.sim.unlock_volume(V).expect("unlocked");
    w.sim.make_busy(V, Duration::from_secs(30)).expect("busy");
    assert_eq!(w.sim.detach(V), Err(OpError::Busy));
    w.pass(30);
    w.sim.detach(V).expect("accepted");
    assert_eq!(w.sim.detach(V), Err(OpError::Busy), "one job at a time");
    w.pass(2);
    w.sim.lock_volume(V, "migration", false).expect("locked");
    assert!(
        w.sim.volume(V).expect("the volume").locks.is_empty(),
        "unseen"
    );
    assert!(matches!(w.sim.attach(V, B), Err(OpError::Locked { .. })));
}

#[test]
fn a_detach_can_be_refused_fail_or_never_end() {
    let w = World::new();
    let refused = DetachBehaviour::Refused {
        status: 400,
        reason: "No.".to_owned(),
    };
    w.sim.set_detach(V, refused).expect("set");
    assert!(matches!(
        w.sim.detach(V),
        Err(OpError::Refused { status: 400, .. })
    ));

    w.sim.set_detach(V, DetachBehaviour::Fails).expect("set");
    w.sim.detach(V).expect("accepted");
    w.pass(60);
    assert_eq!(w.shown(), (Some(A), true, false));
    assert_eq!(
        w.sim.jobs().last().map(|j| j.status),
        Some(JobStatus::Failed)
    );

    w.sim.set_detach(V, DetachBehaviour::Stuck).expect("set");
    let first = w.sim.detach(V).expect("accepted").expect("a job");
    w.pass(3600);
    assert_eq!(w.shown(), (Some(A), true, false));
    let again = w.sim.detach(V).expect("accepted").expect("a job");
    assert_eq!(first.id, again.id, "further calls join the stuck job");
    w.sim.set_detach(V, DetachBehaviour::Normal).expect("set");
    w.pass(2);
    assert_eq!(w.shown(), (None, false, false));
}

#[test]
fn a_detach_of_an_unattached_volume_is_answered_as_set() {
    let w = World::new();
    w.sim.make_lost(V).expect("lost");
    assert_eq!(w.sim.detach(V), Ok(None));
    w.sim.set_unattached_detach(UnattachedDetach::NotFound);
    assert_eq!(w.sim.detach(V), Err(OpError::NoVolume(V)));
    w.sim.set_unattached_detach(UnattachedDetach::BadRequest);
    assert_eq!(w.sim.detach(V), Err(OpError::NotAttached(V)));
}

#[test]
fn the_history_shows_two_holders() {
    let w = World::new();
    // The API loses the attachment while the guest keeps its device: what a real cloud must never do.
    w.pass(10);
    w.sim.make_orphan(V, B).expect("orphan");
    assert_eq!(w.sim.max_holders(V), 1);
    let intervals = w.sim.holder_intervals(V);
    assert_eq!(intervals.len(), 2);
    assert_eq!(
        (intervals[0].until, intervals[1].from),
        (Some(w.after(10)), w.after(10))
    );
    assert!(intervals.iter().all(|i| i.source == HoldSource::Guest));

    let w = World::new();
    w.sim.leak_device(V, B).expect("leaked");
    assert_eq!((w.sim.max_guest_holders(V), w.sim.max_holders(V)), (2, 2));
}

#[test]
fn a_device_pulled_in_use_is_recorded() {
    let w = World::new();
    w.sim.set_in_use(A, V, true);
    w.sim.detach(V).expect("accepted");
    w.pass(2);
    assert_eq!(w.sim.pulled().len(), 1);
    assert_eq!(w.sim.pulled()[0].at, w.after(2));

    for quiet in ["released", "recycled"] {
        let w = World::new();
        w.sim.set_in_use(A, V, true);
        if quiet == "released" {
            w.sim.set_in_use(A, V, false);
        } else {
            w.sim.recycle(A).expect("recycled");
        }
        w.sim.detach(V).expect("accepted");
        w.pass(2);
        assert!(w.sim.pulled().is_empty(), "{quiet}");
    }
}

#[test]
fn numbers_and_labels_are_unique() {
    let w = World::new();
    assert!(w.sim.create_volume(NewVolume::new("vol")).is_err());
    assert!(
        w.sim
            .create_volume(NewVolume::new("other").with_id(V.0))
            .is_err()
    );
    assert!(
        w.sim
            .create_instance(NewInstance::new("x").with_id(A.0))
            .is_err()
    );
    let free = w
        .sim
        .create_volume(NewVolume::new("other"))
        .expect("a volume");
    assert_ne!(free, V);
    assert_eq!(
        w.sim.delete_volume(V),
        Err(OpError::AlreadyAttached {
            volume: V,
            holder: A
        })
    );
}

#[test]
fn the_history_shows_writers_and_power_states() {
    let w = World::new();
    assert!(
        w.sim.writer_intervals(V).is_empty(),
        "a device that is not mounted"
    );
    w.sim.set_in_use(A, V, true);
    w.pass(10);
    w.sim.shutdown(A).expect("accepted");
    w.pass(60);
    w.sim.boot(A).expect("accepted");
    w.pass(100);
    w.sim.delete_instance(A).expect("deleted");
    let writers = w.sim.writer_intervals(V);
    assert_eq!((writers.len(), writers[0].instance), (1, A));
    assert!(
        writers[0].covers(w.after(37)) && !writers[0].covers(w.after(38)),
        "until the shutdown has finished"
    );
    let power = |seconds| w.sim.power_at(A, w.after(seconds));
    assert_eq!(power(5), Some(InstanceStatus::Running));
    assert_eq!(power(20), Some(InstanceStatus::ShuttingDown));
    assert_eq!(power(50), Some(InstanceStatus::Offline));
    assert_eq!(power(140), Some(InstanceStatus::Running));
    assert_eq!((power(171), w.sim.power_at(B, w.after(-1))), (None, None));
    // A device in two guests that both have it mounted is what no cloud should allow.
    w.sim.leak_device(V, B).expect("leaked");
    w.sim.set_in_use(B, V, true);
    assert_eq!(w.sim.max_writers(V), 1, "one after the other");
}
