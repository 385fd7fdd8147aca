//! Seeded faults of the API server and the cloud for some minutes: the safety rules always hold, and everything heals
//! within a bound. (Faults without an end are not healed: a step's deadline turns the run back, and a person is told.)

use reattach_cloud_simulator::{
    ErrorBody, Fault as CloudFault, FaultRule as CloudRule, Operation, When,
};
use reattach_drill::stage::Stage;
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb, WatchBreak};
use reattach_sim::rng::Rng;
use reattach_tests_simulation::{Setup, all_good};
use std::time::Duration;

/// Requests of the controller's replicas: their user agents begin so.
fn ours() -> RequestMatch {
    RequestMatch {
        client: Some("reattach-controller".into()),
        ..RequestMatch::default()
    }
}

fn rule(requests: RequestMatch, fault: Fault, probability: f64) -> FaultRule {
    FaultRule {
        requests,
        fault,
        probability,
        times: None,
    }
}

fn error(code: u16, after_effect: bool) -> Fault {
    Fault::Status {
        status: ApiStatus::new(code, "etcdserver: request timed out"),
        after_effect,
        retry_after: None,
    }
}

/// A tenth of our writes fails, before or after its effect; some reads fail; some take long.
fn shaky_api(s: &Stage, seed: u64) {
    for_a_while(s);
    let server = s.world.server();
    let mut rng = Rng::new(seed, "shaky");
    let writes = || RequestMatch {
        mutations_only: true,
        ..ours()
    };
    server.add_fault(rule(writes(), error(500, false), 0.05));
    server.add_fault(rule(writes(), error(504, true), 0.05));
    server.add_fault(rule(
        writes(),
        Fault::Disconnect {
            after_effect: rng.chance(0.5),
        },
        0.03,
    ));
    server.add_fault(rule(
        RequestMatch {
            verb: Some(Verb::Get),
            ..ours()
        },
        error(503, false),
        0.05,
    ));
    server.add_fault(rule(
        ours(),
        Fault::Latency(rng.between(Duration::from_millis(50), Duration::from_secs(2))),
        0.1,
    ));
    for how in [WatchBreak::End, WatchBreak::Expired, WatchBreak::Disconnect] {
        server.break_watches(&ours(), how);
    }
}

fn shaky_cloud(s: &Stage, seed: u64) {
    for_a_while(s);
    let mut rng = Rng::new(seed, "cloud");
    let bodies = [
        ErrorBody::Json,
        ErrorBody::Html,
        ErrorBody::Empty,
        ErrorBody::Truncated,
    ];
    let odds = |permille: u16, operations: &[Operation], fault: CloudFault| {
        let mut rule = CloudRule::new(operations.to_vec(), fault);
        rule.permille = Some(permille);
        s.world.cloud.add_fault(rule);
    };
    odds(
        100,
        &[],
        CloudFault::Throttle {
            retry_after_seconds: Some(2),
        },
    );
    for when in [When::BeforeEffect, When::AfterEffect] {
        let body = bodies[rng.below(bodies.len())];
        odds(
            200,
            &[Operation::DetachVolume],
            CloudFault::Error {
                status: 502,
                reason: "bad gateway".into(),
                when,
                body,
            },
        );
        odds(100, &[Operation::DetachVolume], CloudFault::Cut { when });
    }
    odds(
        50,
        &[],
        CloudFault::Error {
            status: 500,
            reason: "oops".into(),
            when: When::BeforeEffect,
            body: ErrorBody::Html,
        },
    );
    odds(
        50,
        &[],
        CloudFault::BadSuccess {
            body: bodies[rng.below(bodies.len())],
        },
    );
    odds(
        100,
        &[],
        CloudFault::Latency {
            before_ms: 300,
            after_ms: 1_500,
        },
    );
    s.world
        .cloud
        .freeze_reads(rng.between(Duration::from_secs(1), Duration::from_secs(20)));
}

/// Calm again after a while.
fn for_a_while(s: &Stage) {
    let (server, cloud) = (s.world.server().clone(), s.world.cloud.clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(150)).await;
        server.clear_faults();
        cloud.clear_faults();
    });
}

#[test]
fn faults_of_the_api_server_are_survived() {
    all_good("faults_of_the_api_server_are_survived", 8, |seed| Setup {
        then: shaky_api,
        unpublish_fails: seed % 2 == 0,
        ..Setup::default()
    });
}

#[test]
fn faults_of_the_cloud_are_survived() {
    all_good("faults_of_the_cloud_are_survived", 8, |_| Setup {
        then: shaky_cloud,
        unpublish_fails: true,
        within: Duration::from_secs(1800),
        ..Setup::default()
    });
}

#[test]
fn faults_of_api_server_and_cloud_are_survived() {
    let both = |s: &Stage, seed: u64| {
        shaky_api(s, seed);
        shaky_cloud(s, seed);
    };
    all_good("faults_of_api_server_and_cloud_are_survived", 8, |_| {
        Setup {
            then: both,
            unpublish_fails: true,
            within: Duration::from_secs(1800),
            ..Setup::default()
        }
    });
}
