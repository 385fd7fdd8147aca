//! What keeps the gate shut, to the millisecond.

use super::*;
use http::{Request, Response};
use kube::client::Body;
use reattach_core::testkit::Case;
use std::convert::Infallible;

struct Stage {
    gate: Gate,
    plan: SoundPlan,
    leading: watch::Sender<Option<Leadership>>,
}

impl Stage {
    fn new(leadership: Option<Leadership>) -> Self {
        let service = tower::service_fn(|_: Request<Body>| async {
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let client = Client::new(service, "default");
        let (leading, leadership) = watch::channel(leadership);
        let gate = Gate::new(Clients::over(client.clone(), client), leadership);
        Self {
            gate,
            plan: Case::deployment().plan().unwrap().sound().unwrap(),
            leading,
        }
    }

    fn pass(&self, mode: Mode, approved: Option<&str>, term: u64) -> Result<(), Shut> {
        self.gate
            .pass(&self.plan, &Authority { mode, approved }, term)
            .map(|_| ())
    }
}

fn leads_for(left: Duration) -> Option<Leadership> {
    Some(Leadership {
        term: 7,
        until: Instant::now() + left,
    })
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_may_outlast_the_lease_is_refused() {
    let millisecond = Duration::from_millis(1);
    let enough = Stage::new(leads_for(EFFECT_TIMEOUT + millisecond));
    assert_eq!(enough.pass(Mode::Auto, None, 7), Ok(()));
    let pass = enough.gate.tidy().unwrap();
    let until = enough.gate.leadership().unwrap().until;
    assert!(pass.as_effect().deadline() < until);
    for left in [
        EFFECT_TIMEOUT,
        EFFECT_TIMEOUT - millisecond,
        millisecond,
        Duration::ZERO,
    ] {
        let late = Stage::new(leads_for(left));
        assert_eq!(
            late.pass(Mode::Auto, None, 7),
            Err(Shut::NotLeader),
            "{left:?} left"
        );
        assert!(
            matches!(late.gate.tidy(), Err(Shut::NotLeader)),
            "{left:?} left"
        );
    }
    // The lease is that of the moment at which the gate is passed, and time goes on.
    tokio::time::sleep(millisecond * 2).await;
    assert_eq!(enough.pass(Mode::Auto, None, 7), Err(Shut::NotLeader));
    enough
        .leading
        .send_replace(leads_for(Duration::from_secs(13)));
    assert_eq!(enough.pass(Mode::Auto, None, 7), Ok(()));
    enough.leading.send_replace(None);
    assert_eq!(enough.pass(Mode::Auto, None, 7), Err(Shut::NotLeader));
}

#[tokio::test(start_paused = true)]
async fn a_journal_line_of_another_term_opens_no_gate() {
    let stage = Stage::new(leads_for(Duration::from_secs(13)));
    assert_eq!(stage.pass(Mode::Auto, None, 7), Ok(()));
    for term in [0, 6, 8, u64::MAX] {
        assert_eq!(
            stage.pass(Mode::Auto, None, term),
            Err(Shut::Term {
                expected: term,
                now: 7
            })
        );
    }
}

#[tokio::test(start_paused = true)]
async fn modes_without_effects_open_no_gate() {
    let stage = Stage::new(leads_for(Duration::from_secs(13)));
    let hash = stage.plan.hash.to_string();
    for mode in [Mode::Observe, Mode::DryRun] {
        assert_eq!(stage.pass(mode, Some(&hash), 7), Err(Shut::Mode { mode }));
    }
    assert_eq!(stage.pass(Mode::Approve, Some(&hash), 7), Ok(()));
    for approved in [None, Some("0123456789abcdef")] {
        assert_eq!(
            stage.pass(Mode::Approve, approved, 7),
            Err(Shut::NotApproved { plan: hash.clone() })
        );
    }
}
