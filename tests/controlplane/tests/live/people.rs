//! People approve, ask for a recovery, abort one and work without a controller; a tenant may do none of it.

use crate::common::{AWAY, LIMIT, Stage, StageOptions};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, VolumeRecovery};
use reattach_core::policy::Mode;
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_controlplane::{CsiFaults, Unpublish, eventually, say};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const APP: &str = "redis";

async fn strike(stage: &Stage) {
    stage.kubelet("node-1").recycle(DiskAfter::Kept, AWAY).await;
    stage.await_down("shop", APP).await;
}

async fn healed(stage: &Stage) {
    stage.await_ready("shop", APP, 1).await;
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage.await_nothing_left().await;
}

pub async fn approvals_aborts_and_declarations_decide() {
    let users = vec![
        ("olga".into(), vec![]),
        ("tina".into(), vec![]),
        ("bella".into(), vec![]),
    ];
    let options = StageOptions {
        mode: Some(Mode::Approve),
        users,
        ..StageOptions::default()
    };
    let mut stage = Stage::set(options).await;
    stage.namespace("shop").await;
    let volume = stage.deployment("shop", APP, "node-1").await;
    let olga = stage.person("olga", "shop", &["admin"]).await;
    let tina = stage.person("tina", "shop", &["reattach-operator"]).await;
    let bella = glass_breaker(&stage).await;
    stage.await_ready("shop", APP, 1).await;

    strike(&stage).await;
    let waiting = stage
        .await_phase("shop", APP, &[Phase::AwaitingApproval])
        .await;
    stage.assert_only_records(&[]);
    a_tenant_stays_a_tenant(&stage, &tina, &waiting).await;
    an_approval_is_for_one_plan(&stage, &olga, &waiting).await;
    healed(&stage).await;

    stage.policy(Mode::Observe).await;
    strike(&stage).await;
    // Her right ends at the namespace, and the policy only observes.
    let arguments = [
        "recover",
        APP,
        "-n",
        "shop",
        "--yes",
        "--runbook",
        "scale-to-zero",
    ];
    let said = stage.reattach(&olga, &arguments).await.ended(4);
    assert!(
        format!("{}{}", said.out, said.err).contains("at most mode Observe"),
        "{said:#?}"
    );
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage
        .person_everywhere("olga", &["reattach-approver"])
        .await;
    let ran = stage
        .reattach(
            &olga,
            &[
                "recover",
                APP,
                "-n",
                "shop",
                "--yes",
                "--reason",
                "INC-42",
                "--runbook",
                "scale-to-zero",
            ],
        )
        .await
        .ended(0);
    say!("recover: {}", ran.err.lines().last().unwrap_or_default());
    healed(&stage).await;
    let by_olga = stage
        .recoveries("shop")
        .await
        .into_iter()
        .find(|r| r.spec.requester == "olga" && r.spec.reason.is_some())
        .expect("hers");
    assert_eq!(
        (by_olga.spec.mode, by_olga.spec.reason.as_deref()),
        (Mode::Approve, Some("INC-42"))
    );

    aborted_in_the_middle(&stage, &olga).await;
    without_a_controller(&mut stage, &bella).await;
    stage.assert_one_holder(&[volume]);
}

/// A user with the controller's own rights, and the right to approve.
async fn glass_breaker(stage: &Stage) -> PathBuf {
    for namespace in ["reattach-system", "kube-node-lease"] {
        stage
            .create(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": "bella", "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reattach-controller"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "bella"}],
            }))
            .await;
    }
    stage
        .person_everywhere(
            "bella",
            &[
                "reattach-controller",
                "reattach-scaler",
                "reattach-approver",
            ],
        )
        .await
}

async fn a_tenant_stays_a_tenant(stage: &Stage, tina: &Path, waiting: &VolumeRecovery) {
    let client = stage.plane.client_from(tina).await.expect("a client");
    let api: Api<VolumeRecovery> = Api::namespaced(client, "shop");
    let make = |mode: &str, requester: &str| -> VolumeRecovery {
        serde_json::from_value(json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery", "metadata": {"generateName": "redis-"},
            "spec": {"claimName": APP, "mode": mode, "runbook": "scale-to-zero", "requester": requester},
        }))
        .expect("a VolumeRecovery")
    };
    let refused = |what: &str, answer: kube::Result<VolumeRecovery>| match answer {
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 422) => {
            say!("  tenant, {what}: {}", status.message)
        }
        other => panic!("{what}: {other:?}"),
    };
    let params = PostParams::default();
    refused(
        "forged requester",
        api.create(&params, &make("DryRun", "olga")).await,
    );
    refused(
        "mode Auto",
        api.create(&params, &make("Auto", "tina")).await,
    );
    let merge = |body: Value| Patch::Merge(body);
    let (name, patch) = (waiting.name_any(), PatchParams::default());
    let hash = waiting
        .status
        .as_ref()
        .and_then(|s| s.plan_hash.clone())
        .expect("a plan");
    let own = merge(json!({"spec": {"approval": {"planHash": hash, "approver": "tina"}}}));
    refused("approval", api.patch(&name, &patch, &own).await);
    let forged = merge(json!({"spec": {"approval": {"planHash": hash, "approver": "olga"}}}));
    refused(
        "approval in another's name",
        api.patch(&name, &patch, &forged).await,
    );
    let status = merge(json!({"status": {"phase": "Recovered"}}));
    refused("status", api.patch_status(&name, &patch, &status).await);
    let said = stage
        .reattach(tina, &["approve", &name, "-n", "shop", "--plan", &hash])
        .await;
    said.one_sentence(1, &["approve"]);
    let made = api
        .create(&params, &make("DryRun", "tina"))
        .await
        .expect("a tenant may ask for a dry run");
    api.patch(
        &made.name_any(),
        &patch,
        &merge(json!({"spec": {"abort": {"by": "tina"}}})),
    )
    .await
    .expect("and take it back");
    stage.assert_only_records(&[]);
}

async fn an_approval_is_for_one_plan(stage: &Stage, olga: &Path, waiting: &VolumeRecovery) {
    let name = waiting.name_any();
    let hash = waiting
        .status
        .as_ref()
        .and_then(|s| s.plan_hash.clone())
        .expect("a plan");
    let other = "0123456789abcdef";
    let said = stage
        .reattach(olga, &["approve", &name, "-n", "shop", "--plan", other])
        .await;
    said.one_sentence(1, &[hash.as_str(), other]);
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage
        .reattach(
            olga,
            &["approve", &name, "-n", "shop", "--plan", &hash, "--wait"],
        )
        .await
        .ended(0);
    let api: Api<VolumeRecovery> = Api::namespaced(stage.admin.clone(), "shop");
    let done = api.get(&name).await.expect("it is there");
    let accepted = format!(
        "{:?}",
        done.history()
            .expect("it can be read")
            .1
            .first()
            .expect("a journal")
            .event
    );
    let status = done.status.expect("a status");
    assert_eq!(
        (status.phase, status.plan_hash.as_deref()),
        (Phase::Recovered, Some(hash.as_str()))
    );
    assert!(
        accepted.contains("the approval of olga") && accepted.contains(&hash),
        "{accepted}"
    );
    say!("approved: {accepted}");
}

async fn aborted_in_the_middle(stage: &Stage, olga: &Path) {
    stage
        .plane
        .csi_faults(Unpublish::Hang)
        .await
        .expect("the switch moves");
    stage.policy(Mode::Auto).await;
    strike(stage).await;
    let zero = eventually("a workload at zero", LIMIT, async || {
        (stage.count("shop", "Deployment", APP).await == (0, true)
            && stage.pods("shop", APP).await.is_empty())
        .then_some(())
    });
    zero.await
        .unwrap_or_else(|e| panic!("{e}\n{}", stage.logs()));
    let ran = stage
        .reattach(
            olga,
            &["abort", APP, "-n", "shop", "--reason", "by hand", "--wait"],
        )
        .await;
    say!("abort: {}", ran.err.lines().last().unwrap_or_default());
    ran.ended(0);
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    assert!(stage.recoveries("shop").await.iter().any(|r| {
        r.spec.abort.as_ref().is_some_and(|a| a.by == "olga")
            && r.status.as_ref().is_some_and(|s| s.phase == Phase::Aborted)
    }));
    stage.await_nothing_left().await;
    stage.policy(Mode::Observe).await;
    stage
        .plane
        .csi_faults(CsiFaults::default())
        .await
        .expect("the switch moves");
}

/// The pod that came back by the abort is as stuck as the one before.
async fn without_a_controller(stage: &mut Stage, bella: &Path) {
    stage.await_down("shop", APP).await;
    let arguments = [
        "recover",
        APP,
        "-n",
        "shop",
        "--break-glass",
        // Her roles let her read the Leases of that namespace alone.
        "--controller-namespace",
        "reattach-system",
        "--yes",
        "--timeout",
        "3m",
        "--runbook",
        "scale-to-zero",
    ];
    let said = stage.reattach(bella, &arguments).await;
    let last = said.err.lines().last().unwrap_or_default().to_owned();
    assert!(
        said.code == 1 && last.contains("is alive and holds Lease"),
        "{said:#?}"
    );
    say!("break-glass beside a controller: {last}");
    assert_eq!(stage.count("shop", "Deployment", APP).await, (1, false));
    stage.stop_controllers();
    let ran = stage.reattach(bella, &arguments).await.ended(0);
    say!(
        "break-glass: {}",
        ran.err.lines().last().unwrap_or_default()
    );
    healed(stage).await;
    let all = stage.recoveries("shop").await;
    let hers = all
        .iter()
        .find(|r| r.spec.requester == "bella")
        .expect("hers");
    let journal = hers.history().expect("it can be read").1;
    assert!(
        !journal.is_empty() && journal.iter().all(|e| e.by.starts_with("bella@")),
        "{journal:#?}"
    );
}
