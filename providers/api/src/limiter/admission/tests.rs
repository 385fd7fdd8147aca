use super::super::limit::Allowance;
use super::*;
use futures::future::join_all;
use std::sync::Arc;

const MINUTE: Duration = Duration::from_secs(60);

/// A limiter for 800 requests and 100 lists a minute.
fn limiter() -> Arc<Limiter> {
    let allowance = |requests| Allowance {
        requests,
        window: MINUTE,
    };
    Arc::new(Limiter::new(Published {
        all: allowance(800),
        lists: allowance(100),
    }))
}

/// Number of looks of this kind that a client sends in a window if it tries again as soon as it may.
async fn looks_in(limiter: &Limiter, kind: RequestKind, window: Duration) -> u32 {
    let end = Instant::now() + window;
    let mut sent = 0;
    while Instant::now() < end {
        match limiter.admit(kind, Purpose::Look).await {
            Ok(()) => sent += 1,
            Err(held) => tokio::time::sleep(held.retry_after).await,
        }
    }
    sent
}

fn refused(after: Option<u64>) -> Announced {
    Announced {
        refused: Some(after.map(Duration::from_secs)),
        ..Announced::default()
    }
}

#[tokio::test(start_paused = true)]
async fn looks_use_at_most_half_of_the_limit() {
    for (kind, half) in [(RequestKind::Read, 400), (RequestKind::List, 50)] {
        let limiter = limiter();
        let first = looks_in(&limiter, kind, MINUTE).await;
        assert!((half * 9 / 10..=half).contains(&first), "{kind:?}: {first}");
        let later = looks_in(&limiter, kind, MINUTE).await;
        assert!((half / 2..=half).contains(&later), "{kind:?}: {later}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_announced_limit_replaces_the_published_one() {
    let limiter = limiter();
    let announced = Announced {
        limit: Some(40),
        remaining: Some(39),
        resets_in: Some(MINUTE),
        refused: None,
    };
    limiter.answered(RequestKind::Read, Purpose::Look, announced);
    let sent = looks_in(&limiter, RequestKind::Read, MINUTE).await;
    assert!((15..=20).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_look_holds_looks_and_no_effects() {
    let limiter = limiter();
    limiter.answered(RequestKind::Read, Purpose::Look, refused(Some(30)));
    for kind in [RequestKind::Read, RequestKind::List] {
        let held = limiter.admit(kind, Purpose::Look).await.unwrap_err();
        assert_eq!(held.retry_after, Duration::from_secs(30));
        assert!(limiter.admit(kind, Purpose::Effect).await.is_ok());
    }
    assert_eq!(limiter.held_for(Purpose::Effect), None);
    tokio::time::advance(Duration::from_secs(30)).await;
    assert!(
        limiter
            .admit(RequestKind::Read, Purpose::Look)
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_effect_holds_everything() {
    let limiter = limiter();
    limiter.answered(RequestKind::Change, Purpose::Effect, refused(Some(30)));
    for purpose in [Purpose::Look, Purpose::Effect] {
        assert_eq!(limiter.held_for(purpose), Some(Duration::from_secs(30)));
        assert!(limiter.admit(RequestKind::Read, purpose).await.is_err());
    }
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(limiter.held_for(Purpose::Effect), None);
}

#[tokio::test(start_paused = true)]
async fn refusals_without_a_time_hold_longer_each_time() {
    let limiter = limiter();
    let mut pauses = Vec::new();
    for _ in 0..8 {
        limiter.answered(RequestKind::Read, Purpose::Look, refused(None));
        let held = limiter.held_for(Purpose::Look).expect("held");
        pauses.push(held.as_secs());
        tokio::time::advance(held).await;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    limiter.answered(RequestKind::Read, Purpose::Look, Announced::default());
    limiter.answered(RequestKind::Read, Purpose::Look, refused(None));
    assert_eq!(
        limiter.held_for(Purpose::Look),
        Some(Duration::from_secs(1))
    );
}

#[tokio::test(start_paused = true)]
async fn an_effect_never_waits_behind_looks() {
    let limiter = limiter();
    let looks: Vec<_> = (0..500)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.admit(RequestKind::Read, Purpose::Look).await })
        })
        .collect();
    tokio::task::yield_now().await;
    let before = Instant::now();
    for kind in RequestKind::ALL {
        assert!(limiter.admit(kind, Purpose::Effect).await.is_ok());
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
    let sent = join_all(looks).await;
    let held = sent
        .iter()
        .filter(|look| look.as_ref().is_ok_and(Result::is_err))
        .count();
    assert!(held > 300, "{held}");
    assert!(before.elapsed() <= PATIENCE, "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn looks_wait_while_others_use_more_than_their_half() {
    let limiter = limiter();
    let announced = |remaining| Announced {
        limit: Some(800),
        remaining: Some(remaining),
        resets_in: Some(Duration::from_secs(40)),
        refused: None,
    };
    limiter.answered(RequestKind::Read, Purpose::Look, announced(201));
    assert!(
        limiter
            .admit(RequestKind::Read, Purpose::Look)
            .await
            .is_ok()
    );
    limiter.answered(RequestKind::Read, Purpose::Look, announced(200));
    assert_eq!(limiter.usage().remaining, Some(200));
    let held = limiter
        .admit(RequestKind::List, Purpose::Look)
        .await
        .unwrap_err();
    assert_eq!(held.retry_after, Duration::from_secs(40));
    assert!(
        limiter
            .admit(RequestKind::Read, Purpose::Effect)
            .await
            .is_ok()
    );
    tokio::time::advance(Duration::from_secs(40)).await;
    assert!(
        limiter
            .admit(RequestKind::Read, Purpose::Look)
            .await
            .is_ok()
    );
    assert_eq!(limiter.usage().remaining, None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_reaches_looks_that_wait() {
    let limiter = limiter();
    while limiter.usage().budget > 0 {
        let sent = limiter.admit(RequestKind::Read, Purpose::Look).await;
        assert!(sent.is_ok());
    }
    let waiting = {
        let limiter = limiter.clone();
        tokio::spawn(async move { limiter.admit(RequestKind::Read, Purpose::Look).await })
    };
    tokio::task::yield_now().await;
    limiter.answered(RequestKind::Read, Purpose::Look, refused(Some(30)));
    let held = waiting.await.expect("no panic").unwrap_err();
    assert!(held.retry_after > Duration::from_secs(29), "{held:?}");
    let usage = limiter.usage();
    assert_eq!(usage.of(RequestKind::Read, RequestOutcome::Held), 1);
    assert_eq!(usage.of(RequestKind::Read, RequestOutcome::Refused), 1);
    assert!(!usage.waited.is_zero());
}
