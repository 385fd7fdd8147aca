//! The conformance suite for Linode, over the simulated cloud in memory with a paused clock.

mod support;

use reattach_provider_api::conformance;
use support::{Linode, cloud, contract::Contract};

#[tokio::test(start_paused = true)]
async fn linode_conforms_and_keeps_to_the_api_description() {
    let contract = Contract::load();
    let report = conformance::all(|| Linode::over(cloud(), contract.clone())).await;
    println!("{report}");
    assert!(report.broken.is_empty(), "{report}");
    let skipped: Vec<_> = report.skipped.iter().map(|s| s.case).collect();
    assert_eq!(
        skipped,
        ["moved_meanwhile", "snapshot_of_unknown_outcome"],
        "each skip is meant"
    );
    assert_eq!(report.passed.len(), 38, "{report}");
    contract.assert_kept();
    let mut operations = contract.seen().operations;
    operations.sort();
    operations.dedup();
    let expected = [
        "get-events",
        "get-linode-instance",
        "get-volume",
        "get-volumes",
        "post-boot-linode-instance",
        "post-detach-volume",
        "post-shutdown-linode-instance",
    ];
    assert_eq!(operations, expected);
}
