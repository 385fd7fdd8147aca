//! The parity cases on the real control plane and on the cluster in memory: the same functions, the same bounds, and
//! where a figure is an outcome, the same figure.

use crate::common::{Stage, StageOptions};
use futures::future::join_all;
use reattach_cloud_simulator::{ErrorBody, Fault, FaultRule, Operation, VolumeNo, When};
use reattach_drill::in_virtual_time;
use reattach_sim::cloud::SimulatedCloud;
use reattach_tests_controlplane::say;
use reattach_tests_parity::{CASES, CaseError, Figure, Fixture, all_in_memory, disagreements};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

type Results = Vec<(&'static str, Result<Vec<Figure>, CaseError>)>;

/// The seeds of the cluster in memory: its ticks and syncs then have other phases.
const SEEDS: [u64; 3] = [1, 2, 3];

pub async fn measured_in_memory_cluster_matches_the_real_one() {
    let start = Instant::now();
    let memory = tokio::task::spawn_blocking(|| {
        SEEDS.map(|seed| {
            (
                seed,
                in_virtual_time(move || all_in_memory(seed)).expect("virtual time"),
            )
        })
    });
    let memory: [(u64, Results); SEEDS.len()] = memory.await.expect("the results in memory end");
    say!(
        "{:>5.1} s: the results in memory are done",
        start.elapsed().as_secs_f64()
    );

    // All results side by side, each with two nodes and a volume of its own.
    let nodes = 2 * u64::try_from(CASES.len()).expect("few results");
    let options = StageOptions {
        nodes,
        mode: None,
        controllers: 0,
        agents: false,
        ..Default::default()
    };
    let stage = Stage::set(options).await;
    let mut fixtures = Vec::new();
    for (at, case) in CASES.into_iter().enumerate() {
        fixtures.push((case, fixture(&stage, at).await));
    }
    say!("{:>5.1} s: the stage is set", start.elapsed().as_secs_f64());
    let real: Results = join_all(fixtures.iter().map(|(case, fixture)| async move {
        let result = fixture.run(case).await;
        say!("{:>5.1} s: {case} is done", start.elapsed().as_secs_f64());
        (*case, result)
    }))
    .await;

    let wrong = compare(&real, &memory);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Prints the table and answers what is wrong with it.
fn compare(real: &Results, memory: &[(u64, Results)]) -> Vec<String> {
    let mut wrong = Vec::new();
    say!(
        "{:<17}| {:<62}| {:>13} | {:>13} | allowed",
        "case",
        "what",
        "measured real",
        "in memory"
    );
    for (at, (case, result)) in real.iter().enumerate() {
        let figures = result.as_deref().unwrap_or_else(|error| {
            wrong.push(format!("{case} on the real one: {error}"));
            &[]
        });
        let mut others = Vec::new();
        for (seed, results) in memory {
            let (name, result) = &results[at];
            assert_eq!(name, case, "both run the same results in the same order");
            match result {
                Err(error) => wrong.push(format!("{case} in memory, seed {seed}: {error}")),
                Ok(seen) => {
                    others.push(seen);
                    let unfit = seen.iter().filter(|s| !s.fits());
                    wrong.extend(unfit.map(|s| format!("{case} in memory, seed {seed}: {s:?}")));
                    if result.is_ok() && !figures.is_empty() {
                        wrong.extend(disagreements(case, figures, seen));
                    }
                }
            }
        }
        for (n, seen) in figures.iter().enumerate() {
            let values = || others.iter().filter_map(|o| o.get(n)).map(|s| s.value);
            let (least, most) = (
                values().fold(f64::INFINITY, f64::min),
                values().fold(0.0, f64::max),
            );
            let between = if least < most {
                format!("{least:.1} to {most:.1}")
            } else {
                format!("{most:.1}")
            };
            let (from, to) = seen.bounds;
            say!(
                "{case:<17}| {:<62}| {:>13.1} | {between:>13} | {from} to {to}",
                seen.what,
                seen.value
            );
            if !seen.fits() {
                wrong.push(format!("{case} on the real one: {seen:?}"));
            }
        }
    }
    wrong
}

/// A StatefulSet of its own on two nodes of its own.
async fn fixture(stage: &Stage, at: usize) -> Fixture {
    let set = format!("case{at}");
    let own = &stage.kubelets[2 * at..2 * at + 2];
    let names: Vec<&str> = own.iter().map(|k| k.node()).collect();
    let here = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": names}]}]}}});
    let volumes = stage
        .stateful_set_with("default", &set, 1, names[0], |object| {
            let spec = &mut object["spec"]["template"]["spec"];
            spec.as_object_mut().expect("a spec").remove("nodeSelector");
            spec["affinity"] = here;
        })
        .await;
    let label = stage.cloud.volume(volumes[0]).expect("a volume").label;
    Fixture {
        client: stage.admin.clone(),
        kubelets: own
            .iter()
            .map(|k| (k.node().to_owned(), k.clone()))
            .collect(),
        cloud: SimulatedCloud::new(stage.cloud.clone()),
        unpublish_fails: unpublish_switch(stage, volumes[0]),
        driver: "linodebs.csi.linode.com".to_owned(),
        namespace: "default".to_owned(),
        set,
        handle: format!("{}-{label}", volumes[0]),
        look: Duration::from_millis(200),
        settle: Duration::from_secs(12),
    }
}

/// Makes the cloud refuse to detach this one volume, so that its Unpublish fails and the other results' does not.
fn unpublish_switch(stage: &Stage, volume: VolumeNo) -> Arc<dyn Fn(bool) + Send + Sync> {
    let (cloud, fault) = (stage.cloud.clone(), Mutex::new(None));
    Arc::new(move |fails| {
        let mut fault = fault.lock().expect("the switch is whole");
        if let Some(old) = fault.take() {
            cloud.remove_fault(old);
        }
        if fails {
            let refusal = Fault::Error {
                status: 500,
                reason: "Internal Server Error".to_owned(),
                when: When::BeforeEffect,
                body: ErrorBody::Json,
            };
            *fault =
                Some(cloud.add_fault(
                    FaultRule::new([Operation::DetachVolume], refusal).on_volume(volume),
                ));
        }
    })
}
