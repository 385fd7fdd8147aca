//! Requests and results of a detach, case by case.

mod support;

use reattach_cloud_simulator::{
    DetachBehaviour, ErrorBody, Fault, FaultRule, Operation, UnattachedDetach, When,
};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_core::product::Product;
use reattach_provider_api::{
    DetachOutcome, DetachRequest, EffectKnowledge, Grant, Provider, ProviderError, RightUse,
    conformance::{CloudFault, Harness},
};
use std::time::Duration;
use support::{HOLDER, Linode, OTHER, VOLUME};

async fn detach(linode: &Linode) -> Result<DetachOutcome, ProviderError> {
    let (volume, holder) = (
        VolumeId::new(VOLUME.to_string()),
        InstanceId::new(HOLDER.to_string()),
    );
    let proof = linode.proof(&volume, &holder);
    linode
        .provider
        .detach(DetachRequest::plain(proof, Duration::from_secs(30)))
        .await
}

#[tokio::test(start_paused = true)]
async fn the_holder_is_read_right_before_the_one_detach() {
    let linode = Linode::new();
    assert_eq!(detach(&linode).await, Ok(DetachOutcome::Accepted));
    let sent: Vec<_> = linode
        .sim
        .requests()
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .collect();
    assert_eq!(sent, ["GET /v4/volumes/17", "POST /v4/volumes/17/detach"]);
    let last = &linode.sim.requests()[1];
    assert_eq!(last.body, "", "the API description knows no body");
    let agents: Vec<_> = linode
        .sim
        .requests()
        .iter()
        .map(|r| r.user_agent.clone())
        .collect();
    assert_eq!(
        agents,
        vec![Some(Product::Controller.user_agent().to_owned()); 2]
    );
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn a_failed_detach_shows_what_is_known_about_its_effect() {
    let error = |status: u16, reason: &str, body| Fault::Error {
        status,
        reason: reason.to_owned(),
        when: When::BeforeEffect,
        body,
    };
    let json = ErrorBody::Json;
    let table = [
        (
            error(400, "Blocked by a policy", json),
            "could not detach volume 17 from instance 42: Blocked by a policy (HTTP 400)",
        ),
        (
            error(400, "Something else", json),
            "could not detach volume 17 from instance 42: Something else (HTTP 400)",
        ),
        (
            error(400, "", ErrorBody::Html),
            "could not detach volume 17 from instance 42: HTTP 400 Bad Request with a body of type text/html, not \
             in the API's own form",
        ),
        (
            error(404, "Not found", json),
            "could not detach volume 17 from instance 42: Not found (HTTP 404)",
        ),
        (
            error(403, "Unauthorized", json),
            "not allowed to detach volume 17 from instance 42: Unauthorized (HTTP 403)",
        ),
        (
            error(408, "Timed out", json),
            "tried to detach volume 17 from instance 42, and the effect is not known: Timed out (HTTP 408)",
        ),
        (
            error(500, "", ErrorBody::Truncated),
            "tried to detach volume 17 from instance 42, and the effect is not known: HTTP 500 Internal \
             Server Error with a body of type application/json, not in the API's own form",
        ),
        (
            error(502, "", ErrorBody::Empty),
            "tried to detach volume 17 from instance 42, and the effect is not known: HTTP 502 Bad \
             Gateway with no typed body, not in the API's own form",
        ),
        (
            Fault::Maintenance,
            "tried to detach volume 17 from instance 42, and the effect is not known: The API is under \
             maintenance (HTTP 503, maintenance mode)",
        ),
        (
            Fault::Throttle {
                retry_after_seconds: Some(30),
            },
            "could not detach volume 17 from instance 42: the provider limits the rate of calls, try again in 30 s",
        ),
    ];
    for (fault, expected) in table {
        let linode = Linode::new();
        linode
            .sim
            .add_fault(FaultRule::new([Operation::DetachVolume], fault.clone()));
        let found = detach(&linode).await.expect_err(expected);
        assert_eq!(found.to_string(), expected, "{fault:?}");
        assert_eq!(linode.detaches(), 1, "{fault:?}");
        assert_eq!(
            linode.sim.volume(VOLUME).expect("a volume").holder,
            Some(HOLDER)
        );
        linode.contract.assert_kept();
    }
}

#[tokio::test(start_paused = true)]
async fn a_volume_in_another_state_is_not_detached() {
    for (status, expected) in [
        (
            "resizing",
            Ok(DetachOutcome::Busy {
                detail: "the volume's status is resizing".to_owned(),
            }),
        ),
        (
            "contact_support",
            Ok(DetachOutcome::Locked {
                reason: "contact_support".to_owned(),
            }),
        ),
        (
            "shiny",
            Err(ProviderError::NotApplied {
                operation: "detach volume 17 from instance 42".to_owned(),
                reason: "the volume's status \"shiny\" is not known".to_owned(),
            }),
        ),
    ] {
        let linode = Linode::new();
        linode
            .sim
            .set_volume_status(VOLUME, status)
            .expect("a status");
        assert_eq!(detach(&linode).await, expected);
        assert_eq!(linode.detaches(), 0, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_explained_by_reading_again() {
    // The volume moves to another instance after the read, and the detach is refused.
    let linode = Linode::new();
    linode.sim.freeze_reads(Duration::from_secs(1));
    linode.sim.make_orphan(VOLUME, OTHER).expect("moved");
    let refused = DetachBehaviour::Refused {
        status: 400,
        reason: "No".to_owned(),
    };
    linode.sim.set_detach(VOLUME, refused).expect("refusing");
    let slow = Fault::Latency {
        before_ms: 2_000,
        after_ms: 0,
    };
    linode
        .sim
        .add_fault(FaultRule::new([Operation::DetachVolume], slow));
    let elsewhere = DetachOutcome::AttachedElsewhere(InstanceId::new(OTHER.to_string()));
    assert_eq!(detach(&linode).await, Ok(elsewhere));
    assert_eq!(
        linode
            .sim
            .holder_intervals(VOLUME)
            .last()
            .map(|i| (i.instance, i.until)),
        Some((OTHER, None))
    );

    // The volume loses its holder after the read; the API may answer the detach in each of these ways.
    for (answer, expected) in [
        (UnattachedDetach::Succeeds, DetachOutcome::Accepted),
        (UnattachedDetach::NotFound, DetachOutcome::AlreadyDetached),
        (UnattachedDetach::BadRequest, DetachOutcome::AlreadyDetached),
    ] {
        let linode = Linode::new();
        linode.inject(CloudFault::DetachedMeanwhile);
        linode.sim.set_unattached_detach(answer);
        assert_eq!(detach(&linode).await, Ok(expected), "{answer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_counts_as_busy_when_the_history_cannot_be_read() {
    let linode = Linode::new();
    assert_eq!(detach(&linode).await, Ok(DetachOutcome::Accepted));
    let lost = Fault::Error {
        status: 500,
        reason: String::new(),
        when: When::BeforeEffect,
        body: ErrorBody::Html,
    };
    linode
        .sim
        .add_fault(FaultRule::new([Operation::ListJobs], lost));
    let again = detach(&linode).await;
    assert_eq!(
        again,
        Ok(DetachOutcome::Busy {
            detail: "Linode busy.".to_owned()
        })
    );
}

#[tokio::test(start_paused = true)]
async fn no_two_guests_ever_hold_the_volume() {
    let linode = Linode::new();
    assert_eq!(detach(&linode).await, Ok(DetachOutcome::Accepted));
    assert!(linode.sim.attach(VOLUME, OTHER).is_err(), "still held");
    linode.settle().await;
    linode.sim.attach(VOLUME, OTHER).expect("free");
    linode.settle().await;
    assert!(linode.sim.guest_has_device(OTHER, VOLUME));
    assert_eq!(linode.sim.max_holders(VOLUME), 1);
}

#[tokio::test(start_paused = true)]
async fn preflight_names_each_missing_right() {
    let missing = |scopes: &'static [&'static str]| async move {
        let linode = Linode::new();
        linode.sim.add_token("a-token", scopes);
        let report = linode.provider.preflight().await;
        assert_eq!(report.failure, None);
        linode.contract.assert_kept();
        let missing: Vec<_> = report
            .rights
            .into_iter()
            .filter(|r| r.grant == Grant::Missing)
            .map(|r| r.name)
            .collect();
        missing.join(" ")
    };
    assert_eq!(missing(&["*"]).await, "");
    assert_eq!(
        missing(&[
            "volumes:read_write",
            "linodes:read_write",
            "events:read_only"
        ])
        .await,
        ""
    );
    assert_eq!(
        missing(&["volumes:read_write", "events:read_write"]).await,
        "linodes:read_only linodes:read_write"
    );
    let nothing = "events:read_only linodes:read_only linodes:read_write volumes:read_only volumes:read_write";
    assert_eq!(
        missing(&[]).await,
        nothing,
        "the refusal's own headers tell"
    );
}

#[tokio::test(start_paused = true)]
async fn preflight_without_an_answer_reports_unknown() {
    let linode = Linode::new();
    linode.sim.add_fault(FaultRule::new(
        [],
        Fault::Cut {
            when: When::BeforeEffect,
        },
    ));
    let report = linode.provider.preflight().await;
    assert!(
        report
            .rights
            .iter()
            .all(|r| matches!(r.grant, Grant::Unknown { .. })),
        "{report:?}"
    );
    assert!(report.missing(&[RightUse::Detach]).is_empty() && !report.is_complete());
    assert_eq!(
        report.failure.map(|e| e.effect()),
        Some(EffectKnowledge::NotApplied)
    );
    assert_eq!(
        linode.sim.requests().len(),
        3,
        "a read is tried three times"
    );
}

#[tokio::test(start_paused = true)]
async fn a_user_without_grants_is_denied() {
    let linode = Linode::new();
    linode.sim.set_read_only_user(true);
    assert!(
        linode.provider.preflight().await.is_complete(),
        "grants do not show in the scopes"
    );
    let error = detach(&linode).await.expect_err("denied");
    assert!(matches!(error, ProviderError::Denied { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn errors_and_debug_output_do_not_contain_the_token() {
    let linode = Linode::new();
    linode.inject(CloudFault::BadCredential);
    let error = detach(&linode).await.expect_err("denied");
    let report = linode.provider.preflight().await;
    let printed = format!(
        "{error} {error:?} {report:?} {:?} {:?}",
        linode.provider,
        linode.sim.requests()
    );
    assert!(!printed.contains("a-token"), "{printed}");
}
