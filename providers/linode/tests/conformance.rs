//! The providers' common suite for Linode, against the simulated cloud in memory and under a paused clock.

mod support;

use reattach_provider_api::conformance;
use support::{Linode, cloud, contract::Contract};

#[tokio::test(start_paused = true)]
async fn linode_conforms_and_keeps_to_the_api_description() {
    let contract = Contract::load();
    let broken = conformance::all(|| Linode::over(cloud(), contract.clone())).await;
    assert!(broken.is_empty(), "{broken:#?}");
    contract.assert_kept();
    let mut operations = contract.seen().operations;
    operations.sort();
    operations.dedup();
    let expected = ["get-events", "get-linode-instance", "get-volume", "get-volumes", "post-detach-volume"];
    assert_eq!(operations, expected);
}
