//! Requests and results of a detach, case by case.

mod support;

use bytes::Bytes;
use http::Request;
use jiff::Timestamp;
use reattach_cloud_simulator::{
    DetachBehaviour, ErrorBody, Fault, FaultRule, When, ec2::volume_id, in_memory,
};
use reattach_core::cloud::{JobStatus, VolumeState};
use reattach_core::product::Product;
use reattach_provider_api::{
    DetachOutcome, EffectKnowledge, Grant, HttpTransport, Lookup, Provider, ProviderError,
    RightUse, TransportError,
    conformance::{CloudFault, Harness},
};
use std::time::Duration;
use support::{Aws, HOLDER, KEY, OTHER, SECRET, VOLUME, instance, volume};
use tower::ServiceExt;

const VOL: &str = "vol-00000000000000017";
const HOLDER_ID: &str = "i-00000000000000042";

#[tokio::test(start_paused = true)]
async fn a_detach_reads_the_holder_first_and_names_it() {
    let aws = Aws::new();
    assert_eq!(aws.detach().await, Ok(DetachOutcome::Accepted));
    assert_eq!(
        aws.sent(),
        [
            format!(
                "Action=DescribeVolumes&IncludeManagedResources=true&Filter.1.Name=volume-id&Filter.1.Value.1={VOL}\
                 &MaxResults=500"
            ),
            format!("Action=DetachVolume&InstanceId={HOLDER_ID}&VolumeId={VOL}"),
        ]
    );
    let agent = aws.sim.requests()[1]
        .user_agent
        .clone()
        .expect("a user agent");
    let name = Product::Controller.user_agent().replace('/', "-");
    assert!(agent.contains(&format!("app/{name}")), "{agent}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_detach_shows_what_is_known_about_its_effect() {
    let error = |status: u16, reason: &str, body| Fault::Error {
        status,
        reason: reason.to_owned(),
        when: When::BeforeEffect,
        body,
    };
    let xml = ErrorBody::Json;
    let what = format!("detach volume {VOL} from instance {HOLDER_ID}");
    let table = [
        (
            error(
                400,
                "OperationNotPermitted: The volume is a root volume.",
                xml,
            ),
            format!(
                "could not {what}: The volume is a root volume. (OperationNotPermitted, HTTP 400)"
            ),
        ),
        (
            error(
                400,
                "UnsupportedOperationException: Managed by a service.",
                xml,
            ),
            format!(
                "could not {what}: Managed by a service. (UnsupportedOperationException, HTTP 400)"
            ),
        ),
        (
            error(400, "", ErrorBody::Html),
            format!(
                "could not {what}: HTTP 400 with a body of type text/html, not in the API's own form"
            ),
        ),
        (
            error(400, "InvalidVolume.NotFound: No such volume.", xml),
            format!("could not {what}: No such volume. (InvalidVolume.NotFound, HTTP 400)"),
        ),
        (
            error(400, "InvalidInstanceID.NotFound: No such instance.", xml),
            format!("could not {what}: No such instance. (InvalidInstanceID.NotFound, HTTP 400)"),
        ),
        (
            error(403, "UnauthorizedOperation: You may not.", xml),
            format!(
                "not allowed to {what}: You may not. (UnauthorizedOperation, HTTP 403) (missing: ec2:DetachVolume)"
            ),
        ),
        (
            error(503, "RequestLimitExceeded: Slow down.", xml),
            format!("could not {what}: the provider limits the rate of calls"),
        ),
        (
            error(500, "InternalError: An internal error has occurred", xml),
            format!(
                "tried to {what}, and the effect is not known: An internal error has occurred \
                 (InternalError, HTTP 500)"
            ),
        ),
        (
            error(503, "", ErrorBody::Empty),
            format!(
                "tried to {what}, and the effect is not known: HTTP 503 with no typed body, not in the \
                 API's own form"
            ),
        ),
        (
            error(502, "", ErrorBody::Truncated),
            format!(
                "tried to {what}, and the effect is not known: HTTP 502 with a body of type \
                 text/xml;charset=UTF-8, not in the API's own form"
            ),
        ),
        (
            Fault::BadSuccess {
                body: ErrorBody::Json,
            },
            format!(
                "tried to {what}, and the effect is not known: the answer (HTTP 200) is not in the API's \
                 own form"
            ),
        ),
        (
            Fault::Cut {
                when: When::BeforeEffect,
            },
            format!("tried to {what}, and the effect is not known: the connection broke off"),
        ),
    ];
    for (fault, expected) in table {
        let aws = Aws::new();
        aws.on_detach(fault.clone());
        let error = aws.detach().await.expect_err("an error");
        assert_eq!(error.to_string(), expected, "{fault:?}");
        assert_eq!(aws.mutations(), 1, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_because_of_the_state_is_read_again() {
    let table = [
        (
            "IncorrectState: The volume is changing.",
            "The volume is changing. (IncorrectState)",
        ),
        (
            "VolumeInUse: The volume is in use.",
            "The volume is in use. (VolumeInUse)",
        ),
    ];
    for (refusal, detail) in table {
        let aws = Aws::new();
        let refused = DetachBehaviour::Refused {
            status: 400,
            reason: refusal.to_owned(),
        };
        aws.sim.set_detach(VOLUME, refused).expect("set");
        assert_eq!(
            aws.detach().await,
            Ok(DetachOutcome::Busy {
                detail: detail.to_owned()
            })
        );
    }
    // EC2 answers "not attached to that instance", while its reads still show the attachment: nothing is concluded.
    let aws = Aws::new();
    aws.on_detach(Fault::Error {
        status: 400,
        reason: "InvalidAttachment.NotFound: Not attached.".to_owned(),
        when: When::BeforeEffect,
        body: ErrorBody::Json,
    });
    let error = aws.detach().await.expect_err("an error");
    assert_eq!(error.effect(), EffectKnowledge::NotApplied, "{error}");
    assert!(matches!(error, ProviderError::NotApplied { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_detach_waiting_for_the_guest_is_not_repeated() {
    let aws = Aws::new();
    aws.sim.set_in_use(HOLDER, VOLUME, true);
    assert_eq!(aws.detach().await, Ok(DetachOutcome::Accepted));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(
        aws.true_holder(&volume()),
        Some(instance(HOLDER)),
        "the wait has no limit"
    );
    let found = aws
        .provider
        .describe_volumes(&[volume()])
        .await
        .remove(&volume());
    let found = found.and_then(Lookup::found).expect("the volume");
    assert_eq!(
        (found.state, found.holders),
        (VolumeState::Detaching, vec![instance(HOLDER)])
    );
    // `since` is long after the begin of the attachment and of the detach.
    let jobs = aws.provider.jobs(&volume(), aws.now()).await.expect("jobs");
    let seen: Vec<_> = jobs
        .iter()
        .map(|j| (j.action.as_str(), j.is_pending(), j.created))
        .collect();
    assert_eq!(seen, [("detach_volume_busy", true, support::start())]);
    assert_eq!(aws.detach().await, Ok(DetachOutcome::Detaching));
    assert_eq!(aws.mutations(), 1);
    aws.sim.set_in_use(HOLDER, VOLUME, false);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(aws.true_holder(&volume()), None);
    assert!(
        aws.sim.pulled().is_empty(),
        "no device was pulled from a guest that used it"
    );
    assert_eq!(
        aws.provider
            .jobs(&volume(), Timestamp::MIN)
            .await
            .expect("jobs"),
        []
    );
}

#[tokio::test(start_paused = true)]
async fn an_attachment_is_a_finished_attach_since_it_began() {
    let aws = Aws::new();
    let jobs = aws
        .provider
        .jobs(&volume(), support::start())
        .await
        .expect("jobs");
    let seen: Vec<_> = jobs
        .into_iter()
        .map(|j| (j.action, j.status, j.instance))
        .collect();
    assert_eq!(
        seen,
        [(
            "attach_volume".to_owned(),
            JobStatus::Finished,
            Some(instance(HOLDER))
        )]
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        aws.provider.jobs(&volume(), aws.now()).await.expect("jobs"),
        []
    );
}

#[tokio::test(start_paused = true)]
async fn a_volume_with_two_holders_is_not_detached() {
    let aws = Aws::new();
    aws.sim.also_attach(VOLUME, OTHER).expect("attached");
    let found = aws
        .provider
        .describe_volumes(&[volume()])
        .await
        .remove(&volume());
    let holders = found.and_then(Lookup::found).map(|v| v.holders);
    assert_eq!(holders, Some(vec![instance(HOLDER), instance(OTHER)]));
    let error = aws.detach().await.expect_err("refused");
    assert_eq!(
        error.to_string(),
        format!(
            "could not detach volume {VOL} from instance {HOLDER_ID}: 2 instances have the volume: {HOLDER_ID}, \
             i-00000000000000043"
        )
    );
    assert_eq!(aws.mutations(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_objects_are_read_in_batches_of_200() {
    let aws = Aws::new();
    let ids: Vec<_> = (1..=450)
        .map(|n| volume_id(reattach_cloud_simulator::VolumeNo(n)).into())
        .collect();
    let found = aws.provider.describe_volumes(&ids).await;
    assert_eq!(found.len(), 450);
    let there: Vec<_> = found
        .iter()
        .filter(|(_, l)| matches!(l, Lookup::Found(_)))
        .map(|(id, _)| id)
        .collect();
    assert_eq!(there, [&volume()]);
    assert!(
        found
            .values()
            .all(|l| matches!(l, Lookup::Found(_) | Lookup::NotFound))
    );
    assert_eq!(aws.sim.requests().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_identifier_is_not_sent() {
    let aws = Aws::new();
    for text in ["vol-*", "17", "", "vol-00000000000000017,vol-1"] {
        let found = aws.provider.describe_volumes(&[text.into()]).await;
        assert!(
            matches!(found.get(&text.into()), Some(Lookup::Failed(_))),
            "{text}: {found:?}"
        );
        assert!(
            aws.provider
                .jobs(&text.into(), Timestamp::MIN)
                .await
                .is_err()
        );
    }
    let found = aws.provider.describe_instances(&["i-?".into()]).await;
    assert!(
        matches!(found.get(&"i-?".into()), Some(Lookup::Failed(_))),
        "{found:?}"
    );
    assert_eq!(aws.sim.requests(), []);
}

#[tokio::test(start_paused = true)]
async fn preflight_names_each_missing_right_and_changes_nothing() {
    let missing = |actions: &'static [&'static str]| async move {
        let aws = Aws::new();
        aws.sim.add_token(KEY, actions);
        let report = aws.provider.preflight().await;
        assert_eq!(report.failure, None);
        assert_eq!(aws.mutations(), 0, "{:?}", aws.sent());
        assert_eq!(aws.sim.jobs().len(), 1, "only the attach of the setup");
        assert!(aws.sim.snapshots().is_empty());
        let missing: Vec<_> = report
            .rights
            .iter()
            .filter(|r| r.grant == Grant::Missing)
            .map(|r| r.name.clone())
            .collect();
        (missing.join(" "), report.is_complete())
    };
    assert_eq!(missing(&["*"]).await, (String::new(), true));
    let least = &[
        "ec2:DescribeVolumes",
        "ec2:DescribeInstances",
        "ec2:DetachVolume",
    ];
    let optional = "ec2:CreateSnapshot ec2:DescribeSnapshots ec2:StartInstances ec2:StopInstances";
    assert_eq!(
        missing(least).await,
        (optional.to_owned(), true),
        "complete for all that no policy must ask for"
    );
    let reader = &["ec2:Describe", "ec2:DescribeVolumes"];
    let (names, complete) = missing(reader).await;
    assert!(
        names.contains("ec2:DescribeInstances ") && names.contains("ec2:DetachVolume"),
        "{names}"
    );
    assert!(!complete);
}

#[tokio::test(start_paused = true)]
async fn preflight_without_a_volume_reports_unknown() {
    let aws = Aws::new();
    aws.sim.make_lost(VOLUME).expect("lost");
    let report = aws.provider.preflight().await;
    let detach = report
        .rights
        .iter()
        .find(|r| r.name == "ec2:DetachVolume")
        .expect("the right");
    assert!(
        matches!(&detach.grant, Grant::Unknown { why } if why.contains("no attached volume")),
        "{detach:?}"
    );
    assert!(report.missing(&[RightUse::Detach]).is_empty() && !report.is_complete());
}

#[tokio::test(start_paused = true)]
async fn preflight_without_an_answer_reports_unknown() {
    let aws = Aws::new();
    aws.sim.add_fault(FaultRule::new(
        [],
        Fault::Cut {
            when: When::BeforeEffect,
        },
    ));
    let report = aws.provider.preflight().await;
    assert!(
        report
            .rights
            .iter()
            .all(|r| matches!(r.grant, Grant::Unknown { .. })),
        "{report:?}"
    );
    assert_eq!(
        report.failure.map(|e| e.effect()),
        Some(EffectKnowledge::NotApplied)
    );
}

#[tokio::test(start_paused = true)]
async fn errors_and_debug_output_do_not_contain_the_credential() {
    let aws = Aws::new();
    aws.inject(CloudFault::BadCredential);
    let error = aws.detach().await.expect_err("denied");
    let report = aws.provider.preflight().await;
    let printed = format!(
        "{error} {error:?} {report:?} {:?} {:?}",
        aws.provider,
        aws.sim.requests()
    );
    assert!(
        !printed.contains(SECRET) && !printed.contains(KEY),
        "{printed}"
    );
}

#[test]
fn the_command_by_hand_names_the_instance() {
    let aws = reattach_aws::AwsProvider::connect(support::config("http://127.0.0.1"))
        .expect("a provider");
    assert_eq!(
        aws.detach_command(&volume(), &instance(HOLDER)),
        format!(
            "aws ec2 detach-volume --region eu-central-1 --volume-id {VOL} --instance-id {HOLDER_ID}"
        )
    );
}

/// Returns a provider over this cloud, which appears as another account and region.
fn seen_as(aws: &Aws, account: &'static str, region: &str) -> reattach_aws::AwsProvider {
    let cloud = in_memory(aws.sim.clone());
    let renamed = tower::service_fn(move |request: Request<Bytes>| {
        let cloud = cloud.clone();
        async move {
            let answer = cloud.oneshot(request).await?;
            Ok::<_, TransportError>(answer.map(|body| {
                String::from_utf8_lossy(&body)
                    .replace("123456789012", account)
                    .into()
            }))
        }
    });
    let config =
        reattach_aws::AwsConfig::fixed(region, "http://127.0.0.1", KEY, SECRET).expect("settings");
    reattach_aws::AwsProvider::new(HttpTransport::new(renamed), config)
}

#[tokio::test(start_paused = true)]
async fn the_scope_identifies_account_and_region() {
    let aws = Aws::new();
    let scope = async |account, region| {
        seen_as(&aws, account, region)
            .scope()
            .await
            .expect("a scope")
            .0
    };
    let mine = aws.provider.scope().await.expect("a scope").0;
    assert_eq!(mine, scope("123456789012", "eu-central-1").await);
    assert_ne!(mine, scope("210987654321", "eu-central-1").await);
    assert_ne!(mine, scope("123456789012", "us-east-1").await);
    assert!(
        mine.len() == 32 && mine.bytes().all(|b| b.is_ascii_hexdigit()),
        "{mine}"
    );
    assert!(
        seen_as(&aws, "", "eu-central-1").scope().await.is_err(),
        "an account without a name has no scope"
    );
}
