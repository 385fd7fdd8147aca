//! `plan`: shows what a recovery would do, step by step, or every reason why not. Persists nothing.

use crate::diagnose;
use crate::exit::Exit;
use crate::fail::{Fail, one_line};
use crate::output::{Format, note, print, print_value};
use crate::rights;
use crate::session::{Global, Session, preflight, providers, unknown_driver_note};
use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use reattach_api::RecoveryPolicy;
use reattach_controller::policies::{PlanRules, Subject, ruling};
use reattach_controller::{Collector, Needs, Providers, ceiling};
use reattach_core::authority::Ceiling;
use reattach_core::diagnosis::{Diagnosis, Trouble, Verdict, diagnose as classify};
use reattach_core::evidence::Evidence;
use reattach_core::ids::ObjectName;
use reattach_core::loss::PodLoss;
use reattach_core::plan::{Allowed, Plan, Refusal, Request, make_vetted, may_begin};
use reattach_core::runbook::{DEFAULT_RUNBOOK, Runbook};
use reattach_core::steps::StepKind;
use reattach_report::{TEXT_WIDTH, count, diagnosis_text, paragraph, plan_text};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Shows what a recovery would do, step by step; writes nothing.
///
/// For each step it shows what happens, the command that a person would type, and what could go wrong. It also shows the
/// expected downtime, or every reason why nothing may be done. A power-off is part of the plan where the policy of the claim or --allow-power-off allows it. One request is no read: it asks the API server with `dryRun=All` whether a
/// new pod of the workload would be accepted, and persists nothing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl reattach plan data-redis-0 -n cache
  kubectl reattach plan data-redis-0 --runbook-file my-runbook.yaml
  kubectl reattach plan data-web --confirm-workload Deployment/web   # all its replicas stop
  kubectl reattach plan data-redis-0 -o json | jq -r .plan.hash

Exit codes: 0 there is a plan, or nothing is wrong; 4 it is refused; 5 not ours; 6 wait.")]
pub struct PlanArgs {
    /// PersistentVolumeClaim.
    #[arg(value_name = "CLAIM")]
    claim: String,
    /// Name of the runbook.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_RUNBOOK)]
    runbook: String,
    /// File with a runbook of your own. It is checked against the safety rules.
    #[arg(long, value_name = "FILE", conflicts_with = "runbook")]
    runbook_file: Option<PathBuf>,
    /// Workload with several replicas whose stop you accept.
    #[arg(long, value_name = "KIND/NAME")]
    confirm_workload: Option<String>,
    /// Show the plan as if a power-off of the holder's instance were allowed.
    #[arg(long)]
    allow_power_off: bool,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t)]
    output: Format,
}

pub async fn run(args: PlanArgs, global: &Global) -> Result<Exit> {
    let runbook = match &args.runbook_file {
        Some(file) => from_file(file)?,
        None => built_in(&args.runbook)?,
    };
    check_confirmation(args.confirm_workload.as_deref())?;
    let providers = providers(global)?;
    let session = Session::open(global).await?;
    preflight(&providers, false).await?;
    let claim = session.claim(&args.claim)?;
    session.require_claim(&claim).await?;
    let collector = Collector::new(
        session.clients.clone(),
        None,
        providers,
        session.clock.clone(),
    );
    let collected = collector.collect(&claim, None, Needs::Plan);
    let evidence = session
        .ask(&format!("collect the facts about claim {claim}"), collected)
        .await?;
    let now = session.clock.now();
    let diagnosis = classify(evidence.at(now));
    let Verdict::Ours { trouble } = &diagnosis.verdict else {
        match args.output {
            Format::Table => print(&format!(
                "No plan for claim {claim}: there is nothing to plan.\n\n{}",
                diagnosis_text(&diagnosis)
            ))?,
            format => print_value(format, &answer(&claim, &diagnosis, Value::Null, &[]))?,
        }
        if let Some(hint) = unknown_driver_note(&collector.providers, &diagnosis.verdict) {
            note(&hint);
        }
        return Ok(diagnose::exit_code(&diagnosis.verdict));
    };
    let (allowed, ceiling) = allowed(&session, &args, &collector.providers, &evidence).await?;
    let by_hand = collector.providers.by_hand(&evidence);
    let request = Request {
        runbook: &runbook,
        confirm_workload: args.confirm_workload.as_deref(),
        commands: by_hand.commands(),
        for_show: true,
        allowed,
    };
    match (
        make_vetted(evidence.at(now), &diagnosis, &request),
        args.output,
    ) {
        (Ok(plan), Format::Table) => {
            print(&whole_plan(&plan, Some(&evidence)))?;
            note("");
            note_before_run(&plan, &evidence, now);
            if let Ok(me) = session.me().await {
                let mandate =
                    rights::own_mandate(&session, &me, &plan, ceiling, args.allow_power_off).await;
                for objection in rights::objections(&mandate, &plan, &evidence, now) {
                    note(&format!(
                        "Your approval would not let the plan run: {objection}."
                    ));
                }
            }
            note_how_to_run(&args, &claim, &plan);
            Ok(Exit::Done)
        }
        (Ok(plan), format) => {
            let plan = serde_json::to_value(&*plan)?;
            print_value(format, &answer(&claim, &diagnosis, plan, &[]))?;
            Ok(Exit::Done)
        }
        (Err(refusals), Format::Table) => {
            let sentences: Vec<String> = refusals.iter().map(ToString::to_string).collect();
            print(&refused(
                &format!("No plan for claim {claim}"),
                &trouble.to_string(),
                &sentences,
            ))?;
            note_losses_elsewhere(&evidence);
            note_rights_of_dry_run(&session, &refusals).await;
            note_veto(&claim, &refusals);
            Ok(Exit::Refused)
        }
        (Err(refusals), format) => {
            print_value(format, &answer(&claim, &diagnosis, Value::Null, &refusals))?;
            Ok(Exit::Refused)
        }
    }
}

/// Says what was asked for this plan, and what a run would wait for.
fn note_before_run(plan: &Plan, evidence: &Evidence, now: Timestamp) {
    if let Trouble::Phantom {
        at,
        confirmed: false,
        ..
    } = &plan.trouble
    {
        note(&format!(
            "Before anything runs, the agent on {} is asked to scan the machine again.",
            at.node
        ));
    }
    note(&format!(
        "Nothing was written. The API server was asked with dryRun=All whether it would accept a new pod of {}.",
        plan.pins.workload
    ));
    if let Err(waits) = may_begin(plan, evidence.at(now)) {
        note(&format!(
            "The plan would wait before its first step: {waits}."
        ));
    }
}

fn note_how_to_run(args: &PlanArgs, claim: &ObjectName, plan: &Plan) {
    if args.runbook_file.is_some() {
        note("A runbook from a file can only be shown here. recover runs the built-in runbooks.");
        return;
    }
    let power_off = match plan.find(StepKind::PowerOff) {
        Some(_) => " --allow-power-off",
        None => "",
    };
    note(&format!(
        "To run it: kubectl reattach recover -n {} {}{power_off}",
        claim.namespace, claim.name
    ));
}

/// Returns what the plan may do by the cloud, the claim's policy and `--allow-power-off`, and the ceiling of that policy.
async fn allowed(
    session: &Session,
    args: &PlanArgs,
    providers: &Providers,
    evidence: &Evidence,
) -> Result<(Allowed, Option<Ceiling>), Fail> {
    let api: Api<RecoveryPolicy> = Api::all(session.clients.read.clone());
    let policies = match api.list(&ListParams::default()).await {
        Ok(found) => found.items.into_iter().map(Arc::new).collect(),
        // A user who sees only a namespace still sees a plan: that of a claim without a policy.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            note(
                "note: you may not list recoverypolicies, so the plan is shown as if no policy ruled the claim.",
            );
            Vec::new()
        }
        Err(error) => {
            return Err(Fail::kubernetes(
                &error,
                &session.server,
                "list the policies",
            ));
        }
    };
    let policy = Subject::of(evidence).and_then(|subject| ruling(&policies, &subject));
    let (power_off, rules, ceiling) = match &policy {
        Some(policy) => (
            policy.spec.counting_power_off(),
            PlanRules::from(&policy.spec),
            Some(ceiling(policy.name_any(), &policy.spec)),
        ),
        None => Default::default(),
    };
    Ok((
        providers.allowed(evidence, power_off, args.allow_power_off, rules),
        ceiling,
    ))
}

/// Returns a built-in runbook.
pub fn built_in(name: &str) -> Result<Runbook, Fail> {
    Runbook::built_in(name).map_err(|e| Fail::Usage(format!("--runbook: {e}")))
}

fn from_file(file: &Path) -> Result<Runbook, Fail> {
    let bad = |why: String| Fail::Usage(format!("--runbook-file: {why}"));
    let text = std::fs::read_to_string(file)
        .map_err(|e| bad(format!("cannot read {}: {e}", file.display())))?;
    Runbook::parse(&file.display().to_string(), &text)
        .map_err(|e| bad(one_line(&e.to_string()).replacen(": error: ", ": ", 1)))
}

/// Checks the shape of `--confirm-workload`.
pub fn check_confirmation(given: Option<&str>) -> Result<(), Fail> {
    let Some(text) = given else { return Ok(()) };
    match text.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => Ok(()),
        _ => Err(Fail::Usage(format!(
            "--confirm-workload {text:?} must be KIND/NAME, such as Deployment/web"
        ))),
    }
}

/// Renders a plan, and if it fences a node, everything on that node: all of it stops. The plan names the pods of the
/// claim's namespace and counts the others. `evidence` names those, where the user's own rights have read them.
pub fn whole_plan(plan: &Plan, evidence: Option<&Evidence>) -> String {
    let mut text = plan_text(plan);
    let Some(wide) = &plan.pins.node_wide else {
        return text;
    };
    let node = &plan.pins.node;
    text.push_str(&format!("\nNode {node} is fenced as a whole. On it are\n"));
    let mut row = |label: &str, words: &str| {
        text.push_str(&paragraph(&format!("  {label:<7} "), words, TEXT_WIDTH));
    };
    for (pod, _) in &wide.pods {
        row("pod", &pod.to_string());
    }
    let on_node = evidence.and_then(|e| e.node_pods.get(node)?.shown());
    let others: Vec<_> = on_node
        .into_iter()
        .flatten()
        .filter(|pod| !wide.pods.contains(pod))
        .collect();
    for (pod, _) in &others {
        row("pod", &pod.to_string());
    }
    if others.len() < wide.other_pods.len() {
        row(
            "pods",
            &format!(
                "{} of other namespaces; with the right to see them: kubectl get pods -A --field-selector spec.nodeName={node}",
                wide.other_pods.len()
            ),
        );
    }
    let attached = evidence.and_then(|e| e.nodes.get(node)?.shown());
    let volumes = match attached {
        Some(facts) => facts.volumes_attached.clone(),
        None => wide.named_volumes().map(str::to_owned).collect(),
    };
    volumes.iter().for_each(|volume| row("volume", volume));
    if volumes.len() < wide.volumes.len() {
        row(
            "volumes",
            &format!(
                "{} of other claims; with the right to see them: kubectl get node {node} -o jsonpath='{{.status.volumesAttached}}'",
                wide.volumes.len() - volumes.len()
            ),
        );
    }
    for claim in &wide.claims {
        row("claim", &claim.to_string());
    }
    text
}

/// Renders refusals: a heading, what is wrong, and one reason per paragraph.
pub fn refused(heading: &str, trouble: &str, reasons: &[String]) -> String {
    let reason_count = match reasons.len() {
        1 => "one reason".to_owned(),
        several => count(several, "reason"),
    };
    let mut text = format!("{heading}: {reason_count} against it\n");
    text.push_str(&paragraph("  ", trouble, TEXT_WIDTH));
    text.push('\n');
    for reason in reasons {
        text.push_str(&paragraph("  - ", &one_line(reason), TEXT_WIDTH));
    }
    text
}

/// Names the pods of other namespaces that a refusal only counts, where the user's own rights have read them.
fn note_losses_elsewhere(evidence: &Evidence) {
    for (node, fact) in &evidence.node_losses {
        let others = fact.shown().into_iter().flatten();
        for PodLoss { pod, loss } in
            others.filter(|l| l.pod.namespace != evidence.claim_name.namespace)
        {
            note(&format!("\nnote: pod {pod} on node {node}: {loss}"));
        }
    }
}

/// Says what to send where the safety checker vetoed the plan, and what to do meanwhile.
fn note_veto(claim: &ObjectName, refusals: &[Refusal]) {
    if !refusals.iter().any(|r| matches!(r, Refusal::Vetoed { .. })) {
        return;
    }
    let ObjectName { namespace, name } = claim;
    note(&format!(
        "\nnote: a veto of the safety checker is a fault of reattach. Nothing was done, and a recovery of this claim would do nothing either. Send the output of these commands to reattach's repository as an issue:\n  kubectl reattach --version\n  kubectl reattach plan -n {namespace} {name} -o json\nUntil the fault is mended, heal the volume by hand. This command shows what is wrong with it:\n  kubectl reattach diagnose -n {namespace} {name}"
    ));
}

/// Says whose rights the dry run had, if it was refused for a missing right.
async fn note_rights_of_dry_run(session: &Session, refusals: &[Refusal]) {
    let no_right = |r: &Refusal| matches!(r, Refusal::PodWouldBeRefused { no_right: true, .. });
    if refusals.iter().any(no_right)
        && let Ok(me) = session.me().await
    {
        note(&format!(
            "\nnote: the dry run of that pod used the rights of {}. The controller has its own rights.",
            me.name
        ));
    }
}

/// Returns the JSON object of a diagnosis with its plan or refusals.
fn answer(claim: &ObjectName, diagnosis: &Diagnosis, plan: Value, refusals: &[Refusal]) -> Value {
    let refusals: Vec<Value> = refusals
        .iter()
        .map(|r| {
            let mut object = serde_json::to_value(r).unwrap_or_default();
            object["sentence"] = json!(r.to_string());
            object
        })
        .collect();
    json!({ "claim": claim, "diagnosis": diagnosis, "plan": plan, "refusals": refusals })
}
