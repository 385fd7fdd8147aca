//! The EC2 API: encoding, refusals, durations, faults, and that it shows the same cloud as the Linode API.

use bytes::Bytes;
use http::{Request, Response};
use jiff::SignedDuration;
use reattach_cloud_simulator::{
    CloudSim, DetachBehaviour, Effect, ErrorBody, Fault, FaultRule, InstanceNo, InstanceStatus,
    JobAction, ManualClock, NewInstance, NewVolume, Operation, VolumeNo, When, in_memory,
};
use reattach_provider_api::{TransportError, TransportErrorKind};
use tower::ServiceExt;

const VOLUME: VolumeNo = VolumeNo(10);
const ONE: InstanceNo = InstanceNo(1);
const TWO: InstanceNo = InstanceNo(2);
const VOL: &str = "vol-0000000000000000a";
const DETACH: &str =
    "Action=DetachVolume&VolumeId=vol-0000000000000000a&InstanceId=i-00000000000000001";

fn cloud() -> (CloudSim, ManualClock) {
    let clock = ManualClock::new("2021-07-11T01:13:00Z".parse().expect("a time"));
    let sim = CloudSim::new(clock.clock()).with_seed(7);
    for (id, label) in [(ONE, "one"), (TWO, "two")] {
        let mut new = NewInstance::new(label).with_id(id.0);
        new.watchdog_enabled = false;
        sim.create_instance(new).expect("an instance");
    }
    sim.create_volume(NewVolume::new("a <b> & c").with_id(VOLUME.0))
        .expect("a volume");
    sim.attach_now_with(VOLUME, ONE, true).expect("attached");
    (sim, clock)
}

async fn send(sim: &CloudSim, key: &str, form: &str) -> Result<Response<Bytes>, TransportError> {
    let credential = format!(
        "AWS4-HMAC-SHA256 Credential={key}/20210711/eu-central-1/ec2/aws4_request, SignedHeaders=host, Signature=0"
    );
    let request = Request::builder()
        .method("POST")
        .uri("/")
        .header("authorization", credential)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Bytes::from(format!("{form}&Version=2016-11-15")));
    in_memory(sim.clone())
        .oneshot(request.expect("a request"))
        .await
}

/// Returns status and body of the answer.
async fn ask(sim: &CloudSim, form: &str) -> (u16, String) {
    let answer = send(sim, "AKIA", form).await.expect("an answer");
    (
        answer.status().as_u16(),
        String::from_utf8_lossy(answer.body()).into_owned(),
    )
}

/// Returns the status and the text of the first element of this name.
async fn element(sim: &CloudSim, form: &str, name: &str) -> (u16, String) {
    let (status, body) = ask(sim, form).await;
    (status, inner(&body, name))
}

fn inner(body: &str, name: &str) -> String {
    let rest = body.split_once(&format!("<{name}>")).map(|(_, rest)| rest);
    rest.and_then(|r| r.split_once(&format!("</{name}>")))
        .map_or(String::new(), |(text, _)| text.to_owned())
}

async fn refusal(sim: &CloudSim, form: &str) -> String {
    let (status, code) = element(sim, form, "Code").await;
    format!("{status} {code}")
}

async fn attachment(sim: &CloudSim) -> String {
    let (_, body) = ask(sim, &format!("Action=DescribeVolumes&VolumeId.1={VOL}")).await;
    let set = inner(&body, "attachmentSet");
    format!("{} {}", inner(&set, "instanceId"), inner(&set, "status"))
}

#[tokio::test]
async fn a_volume_and_an_instance_are_encoded_as_ec2_does() {
    let (sim, _) = cloud();
    let (status, body) = ask(&sim, "Action=DescribeVolumes").await;
    assert_eq!(status, 200);
    assert!(
        body.contains(
            "<DescribeVolumesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">"
        ),
        "{body}"
    );
    assert!(
        body.contains("<key>Name</key><value>a &lt;b&gt; &amp; c</value>"),
        "{body}"
    );
    assert_eq!(inner(&body, "attachTime"), "2021-07-11T01:13:00.000Z");
    assert_eq!(attachment(&sim).await, "i-00000000000000001 attached");
    let (_, body) = ask(
        &sim,
        "Action=DescribeInstances&InstanceId.1=i-00000000000000001",
    )
    .await;
    assert_eq!(
        inner(&body, "instanceState"),
        "<code>16</code><name>running</name>"
    );
    assert_eq!(inner(&inner(&body, "blockDeviceMapping"), "volumeId"), VOL);
}

#[tokio::test]
async fn filters_and_pages() {
    let (sim, _) = cloud();
    for n in 20..32 {
        sim.create_volume(NewVolume::new(format!("v{n}")).with_id(n))
            .expect("a volume");
    }
    let count = async |form: &str| ask(&sim, form).await.1.matches("<volumeId>").count();
    // An attached volume shows its identifier twice.
    let by = |name: &str, value: &str| {
        format!("Action=DescribeVolumes&Filter.1.Name={name}&Filter.1.Value.1={value}")
    };
    assert_eq!(count(&by("volume-id", VOL)).await, 2);
    assert_eq!(count(&by("volume-id", "vol-0ffffffffffffffff")).await, 0);
    assert_eq!(count(&by("attachment.status", "attached")).await, 2);
    assert_eq!(
        count(&by("attachment.instance-id", "i-00000000000000002")).await,
        0
    );
    assert_eq!(count(&by("status", "available")).await, 12);
    assert_eq!(count(&by("tag-key", "ebs.csi.aws.com%2Fcluster")).await, 14);
    assert_eq!(count(&by("tag%3AName", "v20")).await, 1);
    let (mut token, mut pages, mut seen) = (String::new(), 0, 0);
    loop {
        let more = if token.is_empty() {
            String::new()
        } else {
            format!("&NextToken={token}")
        };
        let (_, body) = ask(
            &sim,
            &format!("{}&MaxResults=5{more}", by("status", "available")),
        )
        .await;
        (pages, seen) = (pages + 1, seen + body.matches("<volumeId>").count());
        token = inner(&body, "nextToken");
        if token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, seen), (3, 12));
}

#[tokio::test]
async fn refusals_have_ec2s_codes() {
    let (sim, _) = cloud();
    sim.create_volume(NewVolume::new("free").with_id(11))
        .expect("a volume");
    let values: String = (1..=201)
        .map(|n| format!("&Filter.1.Value.{n}=x"))
        .collect();
    let many = format!("Action=DescribeVolumes&Filter.1.Name=status{values}");
    let table = [
        (
            "Action=DescribeVolumes&VolumeId.1=vol-0ffffffffffffffff",
            "400 InvalidVolume.NotFound",
        ),
        (
            "Action=DescribeVolumes&VolumeId.1=vol-x",
            "400 InvalidParameterValue",
        ),
        ("Action=DescribeVolumes&Nonsense=1", "400 UnknownParameter"),
        (
            "Action=DescribeVolumes&Filter.1.Name=nonsense&Filter.1.Value.1=x",
            "400 InvalidParameterValue",
        ),
        (many.as_str(), "400 FilterLimitExceeded"),
        (
            "Action=DescribeVolumes&MaxResults=4",
            "400 InvalidParameterValue",
        ),
        (
            "Action=DescribeInstances&InstanceId.1=i-0ffffffffffffffff",
            "400 InvalidInstanceID.NotFound",
        ),
        (
            "Action=DescribeInstances&InstanceId.1=17",
            "400 InvalidInstanceID.Malformed",
        ),
        ("Action=Nonsense", "400 InvalidAction"),
        ("Action=DetachVolume", "400 MissingParameter"),
        (
            "Action=DetachVolume&VolumeId=vol-0ffffffffffffffff",
            "400 InvalidVolume.NotFound",
        ),
        (
            "Action=DetachVolume&VolumeId=vol-0000000000000000b",
            "400 IncorrectState",
        ),
        (
            "Action=DetachVolume&VolumeId=vol-0000000000000000a&InstanceId=i-00000000000000002",
            "400 InvalidAttachment.NotFound",
        ),
        (
            "Action=AttachVolume&Device=%2Fdev%2Fsdf&VolumeId=vol-0000000000000000a&InstanceId=i-00000000000000002",
            "400 VolumeInUse",
        ),
        (
            "Action=StopInstances&InstanceId.1=i-0ffffffffffffffff",
            "400 InvalidInstanceID.NotFound",
        ),
        (
            "Action=DetachVolume&DryRun=perhaps",
            "400 InvalidParameterValue",
        ),
        (&format!("{DETACH}&DryRun=true"), "412 DryRunOperation"),
        (
            "Action=StopInstances&InstanceId.1=i-00000000000000001&DryRun=true",
            "412 DryRunOperation",
        ),
        (
            "Action=CreateSnapshot&VolumeId=vol-0000000000000000a&DryRun=true",
            "412 DryRunOperation",
        ),
        ("Action=DescribeVolumes&DryRun=true", "412 DryRunOperation"),
    ];
    for (form, expected) in table {
        assert_eq!(refusal(&sim, form).await, expected, "{form}");
    }
    assert!(
        sim.requests().iter().all(|r| r.effect == Effect::None),
        "a refusal changed something"
    );
    assert_eq!(attachment(&sim).await, "i-00000000000000001 attached");
}

#[tokio::test]
async fn a_detach_takes_time_and_names_its_instance() {
    let (sim, clock) = cloud();
    assert_eq!(
        element(&sim, DETACH, "status").await,
        (200, "detaching".to_owned())
    );
    assert_eq!(attachment(&sim).await, "i-00000000000000001 detaching");
    assert_eq!(refusal(&sim, DETACH).await, "400 IncorrectState");
    clock.advance(SignedDuration::from_secs(3));
    assert_eq!(attachment(&sim).await, " ");
    let attach = format!(
        "Action=AttachVolume&Device=%2Fdev%2Fsdf&VolumeId={VOL}&InstanceId=i-00000000000000002"
    );
    assert_eq!(
        element(&sim, &attach, "status").await,
        (200, "attaching".to_owned())
    );
    clock.advance(SignedDuration::from_secs(3));
    assert_eq!(attachment(&sim).await, "i-00000000000000002 attached");
    assert_eq!(sim.max_holders(VOLUME), 1);
}

#[tokio::test]
async fn a_detach_waits_for_the_guest_unless_forced_or_stopped() {
    for how in ["released", "force", "kill"] {
        let (sim, clock) = cloud();
        sim.set_in_use(ONE, VOLUME, true);
        assert_eq!(
            element(&sim, DETACH, "status").await,
            (200, "busy".to_owned()),
            "{how}"
        );
        clock.advance(SignedDuration::from_hours(1));
        assert_eq!(attachment(&sim).await, "i-00000000000000001 busy", "{how}");
        match how {
            "released" => sim.set_in_use(ONE, VOLUME, false),
            "force" => assert_eq!(ask(&sim, &format!("{DETACH}&Force=true")).await.0, 200),
            _ => sim.kill(ONE).expect("off"),
        }
        clock.advance(SignedDuration::from_secs(3));
        assert_eq!(attachment(&sim).await, " ", "{how}");
        assert_eq!(
            sim.pulled().len(),
            usize::from(how == "force"),
            "{how}: a pulled device is on record"
        );
    }
}

#[tokio::test]
async fn force_ends_a_stuck_detach() {
    let (sim, clock) = cloud();
    sim.set_detach(VOLUME, DetachBehaviour::Stuck).expect("set");
    assert_eq!(ask(&sim, DETACH).await.0, 200);
    clock.advance(SignedDuration::from_hours(1));
    assert_eq!(attachment(&sim).await, "i-00000000000000001 detaching");
    assert_eq!(ask(&sim, &format!("{DETACH}&Force=true")).await.0, 200);
    clock.advance(SignedDuration::from_secs(3));
    assert_eq!(attachment(&sim).await, " ");
}

#[tokio::test]
async fn instances_stop_and_start_and_keep_their_volumes() {
    let (sim, clock) = cloud();
    let state = async || {
        let (_, body) = ask(
            &sim,
            "Action=DescribeInstances&InstanceId.1=i-00000000000000001",
        )
        .await;
        inner(&inner(&body, "instanceState"), "name")
    };
    let stop = "Action=StopInstances&InstanceId.1=i-00000000000000001&Force=true";
    let start = "Action=StartInstances&InstanceId.1=i-00000000000000001";
    assert_eq!(ask(&sim, stop).await.0, 200);
    assert_eq!(state().await, "stopping");
    assert_eq!(refusal(&sim, start).await, "400 IncorrectInstanceState");
    clock.advance(SignedDuration::from_mins(1));
    assert_eq!(state().await, "stopped");
    assert!(!sim.guest_has_device(ONE, VOLUME));
    assert_eq!(attachment(&sim).await, "i-00000000000000001 attached");
    let (status, body) = ask(&sim, stop).await;
    assert_eq!(
        (
            status,
            inner(&inner(&body, "previousState"), "name").as_str()
        ),
        (200, "stopped")
    );
    assert_eq!(ask(&sim, start).await.0, 200);
    assert_eq!(state().await, "pending");
    clock.advance(SignedDuration::from_mins(2));
    assert_eq!(state().await, "running");
    assert!(sim.guest_has_device(ONE, VOLUME), "EBS attachments survive");
    sim.set_instance_status(ONE, InstanceStatus::Other("terminated".to_owned()))
        .expect("set");
    assert_eq!(state().await, "terminated");
    assert_eq!(refusal(&sim, start).await, "400 IncorrectInstanceState");
}

#[tokio::test]
async fn snapshots() {
    let (sim, clock) = cloud();
    let (status, body) = ask(
        &sim,
        &format!("Action=CreateSnapshot&VolumeId={VOL}&Description=a+label%2F1"),
    )
    .await;
    assert_eq!((status, inner(&body, "status").as_str()), (200, "pending"));
    let list = "Action=DescribeSnapshots&Owner.1=self&Filter.1.Name=description&Filter.1.Value.1=a+label%2F1";
    assert_eq!(
        element(&sim, list, "snapshotId").await,
        (200, inner(&body, "snapshotId"))
    );
    clock.advance(SignedDuration::from_mins(1));
    assert_eq!(element(&sim, list, "status").await.1, "completed");
    assert_eq!(sim.snapshots().len(), 1);
    assert_eq!(
        sim.requests()[0].effect,
        Effect::Snapshot { volume: VOLUME }
    );
}

#[tokio::test]
async fn keys_rights_and_accounts() {
    let (sim, _) = cloud();
    sim.add_token("READER", &["ec2:DescribeVolumes"]);
    sim.add_foreign_token("FOREIGN");
    let ask = async |key: &str, form: &str| {
        let answer = send(&sim, key, form).await.expect("an answer");
        let body = String::from_utf8_lossy(answer.body()).into_owned();
        (answer.status().as_u16(), inner(&body, "Code"), body)
    };
    let codes = |(status, code, _): (u16, String, String)| format!("{status} {code}");
    assert_eq!(codes(ask("STRANGER", DETACH).await), "401 AuthFailure");
    assert_eq!(
        codes(ask("READER", DETACH).await),
        "403 UnauthorizedOperation"
    );
    assert_eq!(
        codes(ask("READER", &format!("{DETACH}&DryRun=true")).await),
        "403 UnauthorizedOperation"
    );
    assert_eq!(codes(ask("READER", "Action=DescribeVolumes").await), "200 ");
    assert_eq!(
        codes(ask("FOREIGN", DETACH).await),
        "400 InvalidVolume.NotFound"
    );
    let (status, _, body) = ask("FOREIGN", "Action=DescribeVolumes").await;
    assert!(
        status == 200 && inner(&body, "volumeSet").is_empty(),
        "{body}"
    );
    assert_eq!(
        attachment(&sim).await,
        " ",
        "the key of the other questions is not known any more"
    );
    let text = format!("{:?}", sim.requests());
    assert!(
        !text.contains("READER") && !text.contains("Signature"),
        "credentials are in the log"
    );
}

#[tokio::test]
async fn faults_are_encoded_as_ec2_does() {
    let broken = |when, body| Fault::Error {
        status: 503,
        reason: "InternalError: Oops".into(),
        when,
        body,
    };
    let table = [
        (
            Fault::Throttle {
                retry_after_seconds: Some(5),
            },
            "503 RequestLimitExceeded",
            false,
        ),
        (Fault::Maintenance, "503 Unavailable", false),
        (
            broken(When::BeforeEffect, ErrorBody::Json),
            "503 InternalError",
            false,
        ),
        (
            broken(When::AfterEffect, ErrorBody::Json),
            "503 InternalError",
            true,
        ),
        (broken(When::AfterEffect, ErrorBody::Html), "503 ", true),
    ];
    for (fault, expected, detached) in table {
        let (sim, _) = cloud();
        sim.add_fault(
            FaultRule::new([Operation::DetachVolume], fault.clone())
                .on_volume(VOLUME)
                .times(1),
        );
        assert_eq!(refusal(&sim, DETACH).await, expected, "{fault:?}");
        let state = if detached { "detaching" } else { "attached" };
        assert_eq!(
            attachment(&sim).await,
            format!("i-00000000000000001 {state}"),
            "{fault:?}"
        );
        assert_eq!(sim.requests()[0].faults.len(), 1);
    }
    let (sim, _) = cloud();
    sim.add_fault(FaultRule::new(
        [Operation::DetachVolume],
        Fault::Cut {
            when: When::AfterEffect,
        },
    ));
    let error = send(&sim, "AKIA", DETACH).await.expect_err("cut");
    assert_eq!(error.kind, TransportErrorKind::AfterSend);
    assert_eq!(attachment(&sim).await, "i-00000000000000001 detaching");
    sim.set_rate_limit(Some(1));
    assert_eq!(
        refusal(&sim, "Action=DescribeVolumes").await,
        "503 RequestLimitExceeded"
    );
}

#[tokio::test]
async fn both_apis_show_one_cloud_and_one_log() {
    let (sim, clock) = cloud();
    assert_eq!(ask(&sim, DETACH).await.0, 200);
    assert_eq!(ask(&sim, &format!("{DETACH}&DryRun=true")).await.0, 412);
    clock.advance(SignedDuration::from_secs(3));
    let request = Request::builder()
        .uri("/v4/volumes/10")
        .header("authorization", "Bearer x");
    let answer = in_memory(sim.clone())
        .oneshot(request.body(Bytes::new()).expect("a request"))
        .await;
    let text = String::from_utf8_lossy(answer.expect("an answer").body()).into_owned();
    assert!(text.contains("\"linode_id\":null"), "{text}");
    let log = sim.requests();
    let seen: Vec<_> = log
        .iter()
        .map(|r| (r.operation, r.dry_run, r.is_mutation()))
        .collect();
    let (detach, read) = (
        Some(Operation::DetachVolume),
        Some(Operation::DescribeVolume),
    );
    assert_eq!(
        seen,
        [
            (detach, false, true),
            (detach, true, false),
            (read, false, false)
        ]
    );
    let (action, volume) = (JobAction::VolumeDetach, Some(VOLUME));
    assert_eq!(
        log[0].effect,
        Effect::Accepted {
            action,
            volume,
            instance: Some(ONE)
        }
    );
}

#[tokio::test]
async fn stale_reads_show_an_old_cloud() {
    let (sim, clock) = cloud();
    sim.freeze_reads(std::time::Duration::from_secs(60));
    assert_eq!(ask(&sim, DETACH).await.0, 200);
    clock.advance(SignedDuration::from_secs(30));
    assert_eq!(attachment(&sim).await, "i-00000000000000001 attached");
    clock.advance(SignedDuration::from_secs(31));
    assert_eq!(attachment(&sim).await, " ");
}
