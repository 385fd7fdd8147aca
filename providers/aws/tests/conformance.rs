//! The conformance suite for AWS, over the simulated cloud in memory with a paused clock.

mod support;

use reattach_provider_api::conformance;
use support::Aws;

#[tokio::test(start_paused = true)]
async fn aws_conforms() {
    let report = conformance::all(Aws::new).await;
    println!("{report}");
    assert!(report.broken.is_empty(), "{report}");
    let skipped: Vec<_> = report.skipped.iter().map(|s| s.case).collect();
    assert_eq!(
        skipped,
        ["locked", "locked_unseen", "finished_job"],
        "each skip is meant"
    );
    assert_eq!(report.passed.len(), 37, "{report}");
}
