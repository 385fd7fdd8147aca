//! The parity cases on the cluster in memory. The tier of the real control plane runs the same functions and compares.

use reattach_drill::in_virtual_time;
use reattach_tests_parity::{Figure, InMemory, all_in_memory};
use reattach_tests_simulation::seeds;
use std::time::Duration;

fn figures(seed: u64) -> Vec<(&'static str, Vec<Figure>)> {
    let all = in_virtual_time(move || all_in_memory(seed)).expect("virtual time");
    let known = |(case, result): (&'static str, Result<_, reattach_tests_parity::CaseError>)| {
        (
            case,
            result.unwrap_or_else(|e| panic!("seed {seed}, case {case}: {e}")),
        )
    };
    all.into_iter().map(known).collect()
}

#[test]
fn every_case_stays_within_the_measured_bounds() {
    for seed in seeds(6) {
        for (case, figures) in figures(seed) {
            for seen in figures {
                println!(
                    "{case:<18} {:>6.1} {} (allowed {:?})",
                    seen.value, seen.what, seen.bounds
                );
                assert!(seen.fits(), "seed {seed}, case {case}: {seen:?}");
            }
        }
    }
}

#[test]
fn equal_seeds_give_equal_figures() {
    assert_eq!(figures(1), figures(1));
}

/// Measured with real kubelets: 5 of 57, because the volume is out of use for 0.9 s of the 10 s between two status
/// ticks. So of twenty moments half a second apart one to four heal.
#[test]
fn deleting_the_pod_heals_only_at_few_moments() {
    let heals = |phase: u32| {
        let healed = in_virtual_time(move || async move {
            let mut cluster = InMemory::build(1).await?;
            cluster.fixture.settle += Duration::from_millis(500) * phase;
            cluster.fixture.deletion_heals().await
        });
        healed
            .expect("virtual time")
            .unwrap_or_else(|e| panic!("phase {phase}: {e}"))
    };
    let healing: Vec<u32> = (0..20).filter(|phase| heals(*phase)).collect();
    println!("of 20 moments these heal: {healing:?}");
    assert!((1..=4).contains(&healing.len()), "{healing:?}");
}
