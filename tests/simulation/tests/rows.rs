//! The rows of behaviour on the cluster in memory; the real control plane's tier runs the very same functions and
//! compares.

use reattach_drill::in_virtual_time;
use reattach_sim::rows::{InMemory, Seen, all_in_memory};
use reattach_tests_simulation::seeds;
use std::time::Duration;

fn figures(seed: u64) -> Vec<(&'static str, Vec<Seen>)> {
    let all = in_virtual_time(move || all_in_memory(seed)).expect("virtual time");
    let known = |(row, result): (&'static str, Result<_, reattach_sim::rows::RowError>)| {
        (row, result.unwrap_or_else(|e| panic!("seed {seed}, row {row}: {e}")))
    };
    all.into_iter().map(known).collect()
}

#[test]
fn every_row_stays_within_what_was_measured() {
    for seed in seeds(6) {
        for (row, figures) in figures(seed) {
            for seen in figures {
                println!("{row:<18} {:>6.1} {} (allowed {:?})", seen.value, seen.what, seen.bounds);
                assert!(seen.fits(), "seed {seed}, row {row}: {seen:?}");
            }
        }
    }
}

#[test]
fn a_seed_gives_the_same_figures_again() {
    assert_eq!(figures(1), figures(1));
}

/// Measured with real kubelets: 5 of 57, because the volume is out of use for 0.9 s of the 10 s between two status
/// ticks. So of twenty moments half a second apart one to four heal.
#[test]
fn deleting_the_pod_seldom_heals_and_the_moment_decides() {
    let heals = |phase: u32| {
        let healed = in_virtual_time(move || async move {
            let mut cluster = InMemory::build(1).await?;
            cluster.rig.settle += Duration::from_millis(500) * phase;
            cluster.rig.deletion_heals().await
        });
        healed.expect("virtual time").unwrap_or_else(|e| panic!("phase {phase}: {e}"))
    };
    let healing: Vec<u32> = (0..20).filter(|phase| heals(*phase)).collect();
    println!("of 20 moments these heal: {healing:?}");
    assert!((1..=4).contains(&healing.len()), "{healing:?}");
}
