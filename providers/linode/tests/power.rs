//! Requests and results about power: power off and on, history, scope.

mod support;

use reattach_cloud_simulator::{
    DeadHost, ErrorBody, Fault, FaultRule, InstanceStatus, Operation, Timings, When,
};
use reattach_core::{
    cloud::{CloudScope, InstanceState, JobStatus, PowerChange, PowerFacts, PowerJob},
    ids::InstanceId,
};
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_provider_api::{
    EffectError, PowerOffManner, PowerOffRequest, PowerOutcome, Provider, ProviderError,
    conformance::{CloudFault, Harness},
};
use std::time::Duration;
use support::{HOLDER, Linode, OTHER, start};

const TIMEOUT: Duration = Duration::from_secs(30);

fn holder() -> InstanceId {
    InstanceId::new(HOLDER.to_string())
}

async fn off(linode: &Linode, instance: InstanceId) -> Result<PowerOutcome, EffectError> {
    let order = PowerOffRequest {
        instance,
        manner: PowerOffManner::Orderly,
        timeout: TIMEOUT,
    };
    linode.provider.power_off(order).await
}

async fn facts(linode: &Linode) -> PowerFacts {
    let facts = linode
        .provider
        .power_facts(&holder(), start())
        .await
        .expect("a history");
    assert!(!facts.off_stays_off, "the watchdog may always boot it");
    facts
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn the_state_is_read_right_before_the_one_request() {
    let linode = Linode::new();
    assert_eq!(off(&linode, holder()).await, Ok(PowerOutcome::Accepted));
    pass(60).await;
    assert_eq!(
        linode.provider.power_on(&holder(), TIMEOUT).await,
        Ok(PowerOutcome::Accepted)
    );
    let sent: Vec<_> = linode
        .sim
        .requests()
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .collect();
    let instance = "/v4/linode/instances/42";
    let expected = [
        format!("GET {instance}"),
        format!("POST {instance}/shutdown"),
        format!("GET {instance}"),
        format!("POST {instance}/boot"),
    ];
    assert_eq!(sent, expected);
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn an_instance_in_another_state_does_not_change() {
    let busy = |detail: &str| {
        Ok(PowerOutcome::Busy {
            detail: detail.to_owned(),
        })
    };
    let going = "the instance is shutting down or being deleted";
    let unknown = |operation: &str| {
        Err(EffectError::Failed(ProviderError::NotApplied {
            operation: format!("{operation} instance 42"),
            reason: "the instance's status \"levitating\" is not known".to_owned(),
        }))
    };
    let other = |word: &str| InstanceStatus::Other(word.to_owned());
    let table = [
        (
            InstanceStatus::Booting,
            busy("the instance's status is booting"),
            None,
        ),
        // Maintenance, which ends by itself: not off.
        (
            other("stopped"),
            busy("the instance's status is stopped"),
            None,
        ),
        (InstanceStatus::ShuttingDown, busy(going), None),
        (
            InstanceStatus::Offline,
            Ok(PowerOutcome::AlreadyThere),
            Some(Ok(PowerOutcome::Accepted)),
        ),
        (
            other("levitating"),
            unknown("power off"),
            Some(unknown("power on")),
        ),
    ];
    for (status, when_off, when_on) in table {
        let linode = Linode::new();
        linode
            .sim
            .set_instance_status(HOLDER, status.clone())
            .expect("a status");
        assert_eq!(off(&linode, holder()).await, when_off, "{status:?}");
        assert_eq!(linode.mutations(), 0, "{status:?}");
        let on = linode.provider.power_on(&holder(), TIMEOUT).await;
        assert_eq!(on, when_on.unwrap_or(when_off), "{status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_shows_what_is_known_about_its_effect() {
    let error = |status, reason: &str, body| Fault::Error {
        status,
        reason: reason.to_owned(),
        when: When::BeforeEffect,
        body,
    };
    let open = "tried to power off instance 42, and the effect is not known: ";
    let table = [
        (error(400, "Linode busy.", ErrorBody::Json), Ok("Linode busy.".to_owned())),
        (error(400, "No", ErrorBody::Json), Err("could not power off instance 42: No (HTTP 400)".to_owned())),
        (
            error(403, "Unauthorized", ErrorBody::Json),
            Err("not allowed to power off instance 42: Unauthorized (HTTP 403)".to_owned()),
        ),
        (
            error(502, "", ErrorBody::Empty),
            Err(format!("{open}HTTP 502 Bad Gateway with no typed body, not in the API's own form")),
        ),
        (
            Fault::BadSuccess { body: ErrorBody::Html },
            Err(format!("{open}the answer (HTTP 200) cannot be used: it is not a JSON object")),
        ),
        (
            Fault::Throttle { retry_after_seconds: Some(30) },
            Err("could not power off instance 42: the provider limits the rate of calls, try again in 30 s"
                .to_owned()),
        ),
    ];
    for (fault, expected) in table {
        let linode = Linode::new();
        linode
            .sim
            .add_fault(FaultRule::new([Operation::ShutdownInstance], fault.clone()));
        let found = match off(&linode, holder()).await {
            Ok(PowerOutcome::Busy { detail }) => Ok(detail),
            Ok(other) => panic!("{other:?} after {fault:?}"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(found, expected);
        assert_eq!(linode.mutations(), 1, "{fault:?}");
    }
    let linode = Linode::new();
    let no_such = off(&linode, "998".into()).await;
    assert!(
        matches!(
            no_such,
            Err(EffectError::Failed(ProviderError::NotFound { .. }))
        ),
        "{no_such:?}"
    );
    for odd in ["i-1", "", "../account", "042"] {
        assert!(off(&linode, odd.into()).await.is_err());
    }
    assert_eq!(
        (linode.mutations(), linode.sim.requests().len()),
        (0, 1),
        "odd names are not sent"
    );
}

#[tokio::test(start_paused = true)]
async fn answers_about_another_instance_are_refused() {
    let linode = Linode::new();
    // The holder was shut down; of the other instance, a boot is told.
    assert_eq!(off(&linode, holder()).await, Ok(PowerOutcome::Accepted));
    linode.sim.shutdown(OTHER).expect("a job");
    pass(60).await;
    assert_eq!(facts(&linode).await.jobs.len(), 1);
    let mutations = linode.mutations();
    linode.inject(CloudFault::MixedUp);
    let other = |error: &ProviderError| {
        matches!(error, ProviderError::OtherObject { asked, answered, .. }
            if asked.ends_with(" 42") && answered.ends_with(" 43"))
    };
    let refused = |e: &EffectError| matches!(e, EffectError::Failed(error) if other(error));
    let told = linode.provider.power_facts(&holder(), start()).await;
    assert!(told.as_ref().is_err_and(refused), "{told:?}");
    for answer in [
        off(&linode, holder()).await,
        linode.provider.power_on(&holder(), TIMEOUT).await,
    ] {
        assert!(answer.as_ref().is_err_and(refused), "{answer:?}");
    }
    assert_eq!(
        linode.mutations(),
        mutations,
        "nothing is ordered on another instance's state"
    );
    let error = told.expect_err("refused").to_string();
    assert_eq!(
        error,
        "could not read the power history of instance 42: the answer is about linode 43, not about linode 42, \
         so it is not used; check the proxies between reattach and the provider"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_names_its_user_and_its_end() {
    let linode = Linode::new();
    pass(10).await;
    let ordered = linode.sim.now();
    assert_eq!(off(&linode, holder()).await, Ok(PowerOutcome::Accepted));
    let job =
        |facts: PowerFacts| -> PowerJob { facts.jobs.into_iter().next_back().expect("a job") };
    let under_way = job(facts(&linode).await);
    assert_eq!(
        (under_way.status, under_way.finished),
        (JobStatus::Started, None)
    );
    pass(60).await;
    let over = job(facts(&linode).await);
    assert_eq!(
        (over.change, over.status),
        (PowerChange::Off, JobStatus::Finished)
    );
    assert_eq!(
        (over.by.as_deref(), over.created),
        (Some("simulated"), ordered)
    );
    let took = Duration::from_millis(Timings::default().shutdown_ms);
    let ended = ordered.checked_add(took).expect("a time");
    let finished = over.finished.expect("an end");
    assert!(
        finished >= ended && finished.as_second() <= ended.as_second() + 2,
        "{finished}"
    );
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_boots_only_after_a_stop_without_a_job() {
    let linode = Linode::new();
    linode.sim.kill(HOLDER).expect("killed");
    let jobs = facts(&linode).await.jobs;
    let seen: Vec<_> = jobs
        .iter()
        .map(|j| (j.change, j.is_pending(), j.by.clone()))
        .collect();
    assert_eq!(
        seen,
        [(PowerChange::On, true, None)],
        "a boot by the watchdog names no user"
    );
    pass(200).await;
    let status = || linode.sim.instance(HOLDER).expect("an instance").status;
    assert_eq!(status(), InstanceStatus::Running);

    assert_eq!(off(&linode, holder()).await, Ok(PowerOutcome::Accepted));
    pass(60).await;
    // A machine that is off has no power to lose.
    linode.sim.kill(HOLDER).expect("killed");
    pass(600).await;
    assert_eq!(status(), InstanceStatus::Offline);
    assert!(facts(&linode).await.jobs.iter().all(|j| !j.is_pending()));
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_is_switched_off_and_on_again() {
    let linode = Linode::new();
    linode.sim.set_dead_host(DeadHost::Silent);
    linode.sim.kill(HOLDER).expect("killed");
    assert_eq!(watchdog(&linode, false).await, Ok(PowerOutcome::Accepted));
    assert_eq!(
        watchdog(&linode, false).await,
        Ok(PowerOutcome::AlreadyThere)
    );
    let read = linode.provider.describe_instances(&[holder()]).await;
    let shown = read[&holder()].clone().found().expect("an instance");
    assert_eq!(
        (shown.state, shown.auto_restart),
        (InstanceState::Off, false)
    );
    linode.sim.host_is_back(HOLDER).expect("back");
    pass(600).await;
    let instance = || linode.sim.instance(HOLDER).expect("an instance");
    assert_eq!(instance().status, InstanceStatus::Offline);
    assert_eq!(watchdog(&linode, true).await, Ok(PowerOutcome::Accepted));
    assert!(instance().watchdog_enabled);
    let sent = linode.sim.requests().into_iter();
    let changes = sent.filter(|r| r.operation == Some(Operation::UpdateInstance));
    assert_eq!(changes.count(), 2, "nothing is sent without a change");
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_watchdog_is_sent_once() {
    let linode = Linode::new();
    let cut = Fault::Cut {
        when: When::AfterEffect,
    };
    linode
        .sim
        .add_fault(FaultRule::new([Operation::UpdateInstance], cut).times(1));
    let lost = watchdog(&linode, false).await;
    assert!(
        matches!(
            lost,
            Err(EffectError::Failed(ProviderError::Unknown { .. }))
        ),
        "{lost:?}"
    );
    let sent = linode.sim.requests().into_iter();
    let changes = sent.filter(|r| r.operation == Some(Operation::UpdateInstance));
    assert_eq!(changes.count(), 1);
}

async fn watchdog(linode: &Linode, on: bool) -> Result<PowerOutcome, EffectError> {
    linode.provider.set_restart(&holder(), on, TIMEOUT).await
}

#[tokio::test(start_paused = true)]
async fn the_history_is_of_one_instance_from_since_on() {
    let linode = Linode::new();
    linode.sim.reboot(OTHER).expect("a reboot");
    linode.sim.reboot(HOLDER).expect("a reboot");
    pass(3600).await;
    let since = linode.sim.now();
    linode.sim.shutdown_by_cloud(HOLDER).expect("a shutdown");
    let recent = linode
        .provider
        .power_facts(&holder(), since)
        .await
        .expect("a history")
        .jobs;
    let seen: Vec<_> = recent.iter().map(|j| (j.change, j.by.clone())).collect();
    assert_eq!(seen, [(PowerChange::Off, None)]);
    let whole: Vec<_> = facts(&linode)
        .await
        .jobs
        .into_iter()
        .map(|j| j.change)
        .collect();
    assert_eq!(
        whole,
        [PowerChange::On, PowerChange::Off],
        "oldest first, without the other instance's"
    );
    // What is under way shows, however long ago it began.
    let later = since.checked_add(Duration::from_secs(20)).expect("a time");
    assert_eq!(
        linode
            .provider
            .power_facts(&holder(), later)
            .await
            .expect("a history")
            .jobs
            .len(),
        1
    );
    pass(3600).await;
    let later = linode.sim.now();
    assert_eq!(
        linode
            .provider
            .power_facts(&holder(), later)
            .await
            .expect("a history")
            .jobs
            .len(),
        0
    );
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn the_scope_identifies_account_token_and_api() {
    let linode = Linode::new();
    let over = |token: &str, url: &str| {
        let config =
            LinodeConfig::new(Token::new(token).expect("a token"), Some(url)).expect("settings");
        LinodeProvider::new(
            reattach_cloud_simulator::in_memory(linode.sim.clone()),
            config,
        )
    };
    let scope = async |provider: &LinodeProvider| -> Result<CloudScope, EffectError> {
        provider.scope().await
    };
    let mine = scope(&linode.provider).await.expect("a scope");
    assert_eq!(
        scope(&over("a-token", "http://127.0.0.1")).await,
        Ok(mine.clone()),
        "another process"
    );
    for other in [
        over("b-token", "http://127.0.0.1"),
        over("a-token", "http://127.0.0.1/v4beta"),
    ] {
        assert_ne!(scope(&other).await, Ok(mine.clone()));
    }
    assert!(
        mine.0.len() == 32 && mine.0.bytes().all(|b| b.is_ascii_hexdigit()),
        "{mine:?}"
    );
    // Without the right to read volumes the answer still names the account.
    linode.sim.add_token("a-token", &["linodes:read_only"]);
    assert_eq!(scope(&linode.provider).await, Ok(mine.clone()));
    linode.inject(CloudFault::WrongAccount);
    assert_ne!(
        scope(&linode.provider).await,
        Ok(mine.clone()),
        "the same token, another account"
    );
    linode.inject(CloudFault::ReadsFail);
    assert!(
        scope(&linode.provider).await.is_err(),
        "no answer, no scope"
    );
}
