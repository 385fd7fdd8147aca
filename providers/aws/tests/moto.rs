//! Compares this project's simulator with moto, a simulator of AWS by other authors, by the provider's requests.
//!
//! Where both agree, one answer is asserted for both. Where they differ, both answers are asserted, with the one that is
//! right by AWS's documentation. Neither is AWS: a green run shows that the provider's requests and reads have EC2's form,
//! and nothing about fencing.
//!
//! Needs the folder that `moto/setup` prints in `REATTACH_MOTO`; without it the test prints a line with SKIPPED.

#[path = "moto/questions.rs"]
mod questions;
mod support;
#[path = "moto/world.rs"]
mod world;

use questions::{Expected, QUESTIONS, Right};
use world::{Moto, World};

#[tokio::test]
async fn moto_and_the_simulated_cloud_agree_or_differ_as_known() {
    let Some(folder) = std::env::var_os("REATTACH_MOTO").filter(|v| !v.is_empty()) else {
        println!(
            "SKIPPED moto: REATTACH_MOTO is not set; it names the folder that providers/aws/tests/moto/setup prints"
        );
        return;
    };
    let moto = Moto::start(folder.as_ref()).await;
    let mut wrong = Vec::new();
    let (mut agreed, mut differed) = (0, 0);
    for question in QUESTIONS {
        let ours = (question.ask)(&World::simulated().await).await;
        let theirs = (question.ask)(&moto.world().await).await;
        let (expected_ours, expected_theirs) = match question.expected {
            Expected::Same(answer) => (answer, answer),
            Expected::Differ { ours, theirs, .. } => (ours, theirs),
        };
        let right = match question.expected {
            Expected::Same(_) => {
                agreed += 1;
                String::new()
            }
            Expected::Differ {
                ours,
                theirs,
                right,
                why,
            } => {
                differed += 1;
                assert_ne!(
                    ours, theirs,
                    "{}: a disagreement has two answers",
                    question.name
                );
                let side = match right {
                    Right::Ours => "the simulated cloud",
                    Right::Theirs => "moto",
                    Right::Neither => "neither",
                };
                format!("\n      right is {side}: {why}")
            }
        };
        println!(
            "{}: simulated cloud: {ours}; moto: {theirs}{right}",
            question.name
        );
        if ours != expected_ours {
            wrong.push(format!(
                "{}: the simulated cloud answers {ours:?}, expected {expected_ours:?}",
                question.name
            ));
        }
        if theirs != expected_theirs {
            wrong.push(format!(
                "{}: moto answers {theirs:?}, expected {expected_theirs:?}",
                question.name
            ));
        }
    }
    println!(
        "moto {}: {agreed} answers agree, {differed} differ as known",
        moto.version()
    );
    assert!(wrong.is_empty(), "{wrong:#?}");
}
