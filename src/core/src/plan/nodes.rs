//! What stands against an effect on a whole node: nobody's word reaches that far, the rules do not select the node, it is
//! under maintenance, something on it is opted out, it may only be booting, its kubelet still posts, or it went
//! down together with others.

use super::Plan;
use crate::authority::{NodeRules, NodeWord};
use crate::cloud::{JobStatus, PowerChange};
use crate::evidence::{EvidenceAt, NodeFacts};
use crate::fact::Missing;
use crate::outage::down_together;
use crate::plan::Refusal;
use crate::proof;
use crate::steps::StepKind;
use std::collections::BTreeMap;

impl Plan {
    /// Does the plan stop every pod of the node?
    pub fn fences(&self) -> bool {
        self.steps.iter().any(|s| s.kind.spec().reaches_node)
    }
}

/// Every refusal of touching the whole of the plan's node now. Empty for a plan that leaves the node as a whole alone, and
/// for a Node that does not exist.
pub fn may_touch_node(plan: &Plan, evidence: EvidenceAt<'_>) -> Vec<Refusal> {
    if !plan.fences() && !plan.closes_node {
        return Vec::new();
    }
    let name = &plan.pins.node;
    let missing = |what: String, why: String| vec![Refusal::Missing { what, why }];
    let node = match evidence.node(name) {
        Ok(node) => node,
        Err(Missing::Absent) => return Vec::new(),
        Err(why) => return missing(format!("Node {name}"), why.to_string()),
    };
    let mandate = match evidence.mandate() {
        Ok(mandate) => mandate,
        Err(why) => return missing("what this recovery may do".to_owned(), why.to_string()),
    };
    let word = match mandate.over_node(name, &plan.hash) {
        Ok(word) => word,
        Err(denial) => return vec![Refusal::Denied { denial }],
    };
    let mut out = Vec::new();
    let rules = spared_by_rules(node, &word, &mut out);
    if plan.fences() {
        if !rules.override_opt_outs {
            opt_outs(plan, evidence, &mut out);
        }
        let judged = matches!(
            word,
            NodeWord::Person {
                saw_the_plan: true,
                ..
            }
        );
        let proven = proof::of_the_whole_machine(evidence, &plan.pins.holder).is_ok();
        // What the cloud or a person says of the machine itself is explained by no partition.
        if !judged && !proven && plan.find(StepKind::PowerOff).is_some() {
            brakes(plan, node, &rules, evidence, &mut out);
        }
    }
    out
}

/// Every refusal of keeping the plan's machine off now. The machine is off and no pod runs there, so opt-outs of claims on
/// the node do not count. A Node that does not exist has no labels, so only rules for every node select its machine.
pub fn may_keep_off(plan: &Plan, evidence: EvidenceAt<'_>) -> Vec<Refusal> {
    let name = &plan.pins.node;
    let missing = |what: String, why: String| vec![Refusal::Missing { what, why }];
    let mandate = match evidence.mandate() {
        Ok(mandate) => mandate,
        Err(why) => return missing("what this recovery may do".to_owned(), why.to_string()),
    };
    if let Err(denial) = mandate.may_power_off() {
        return vec![Refusal::Denied { denial }];
    }
    let word = match mandate.over_node(name, &plan.hash) {
        Ok(word) => word,
        Err(denial) => return vec![Refusal::Denied { denial }],
    };
    let node = match evidence.node(name) {
        Ok(node) => node,
        Err(Missing::Absent) => {
            let NodeWord::Rules { policy, rules } = &word else {
                return Vec::new();
            };
            if rules.select(&BTreeMap::new()) {
                return Vec::new();
            }
            let denial = crate::authority::Denial::NodeNotSelected {
                node: name.to_string(),
                policy: policy.clone(),
            };
            return vec![Refusal::Denied { denial }];
        }
        Err(why) => return missing(format!("Node {name}"), why.to_string()),
    };
    let mut out = Vec::new();
    let rules = spared_by_rules(node, &word, &mut out);
    let judged = matches!(
        word,
        NodeWord::Person {
            saw_the_plan: true,
            ..
        }
    );
    if !judged {
        brakes(plan, node, &rules, evidence, &mut out);
    }
    out
}

/// The rules for the node by this word, after the refusals that they and a maintenance make.
fn spared_by_rules(node: &NodeFacts, word: &NodeWord, out: &mut Vec<Refusal>) -> NodeRules {
    let rules = match word {
        NodeWord::Rules { policy, rules } => {
            if !rules.select(&node.labels) {
                let denial = crate::authority::Denial::NodeNotSelected {
                    node: node.name.to_string(),
                    policy: policy.clone(),
                };
                out.push(Refusal::Denied { denial });
            }
            rules.clone()
        }
        NodeWord::Person { .. } => NodeRules::default(),
    };
    if let Some(annotation) = &node.maintenance {
        out.push(Refusal::Maintenance {
            node: node.name.to_string(),
            annotation: annotation.clone(),
        });
    }
    rules
}

/// Claims on the node that nobody may move.
fn opt_outs(plan: &Plan, evidence: EvidenceAt<'_>, out: &mut Vec<Refusal>) {
    let node = &plan.pins.node;
    match evidence.node_claims(node) {
        Ok(claims) => {
            for claim in claims {
                // The plan's own claim is judged by its policy and by the word of people, before.
                let Some(what) = claim
                    .opted_out
                    .as_ref()
                    .filter(|_| claim.claim != evidence.claim_name)
                else {
                    continue;
                };
                let own = claim.claim.namespace == evidence.claim_name.namespace;
                // The people of the plan's namespace read the refusal, and need not have the right to see other namespaces.
                let refusal = Refusal::OptedOutOnNode {
                    node: node.to_string(),
                    claim: if own {
                        claim.claim.to_string()
                    } else {
                        "of another namespace".to_owned()
                    },
                    what: if own {
                        what.clone()
                    } else {
                        "an annotation or its policy".to_owned()
                    },
                };
                if !out.contains(&refusal) {
                    out.push(refusal);
                }
            }
        }
        Err(missing) => out.push(Refusal::Missing {
            what: format!("the claims of the pods on {node}"),
            why: missing.to_string(),
        }),
    }
}

/// A node that may only be booting, or that an outage may have cut off.
fn brakes(
    plan: &Plan,
    node: &NodeFacts,
    rules: &NodeRules,
    evidence: EvidenceAt<'_>,
    out: &mut Vec<Refusal>,
) {
    let name = &plan.pins.node;
    let down = match evidence.down() {
        Ok(down) => down,
        Err(missing) => {
            out.push(Refusal::Missing {
                what: "which nodes are down".to_owned(),
                why: missing.to_string(),
            });
            return;
        }
    };
    // Ready now, or newer than the list: then it has been down for no time at all.
    let own = down
        .iter()
        .find(|d| d.name == node.name)
        .filter(|_| !node.ready);
    let down_for = own.map_or(0, |d| d.down_for(evidence.now).as_secs());
    let down_for = down_for.min(since_the_boot(plan, evidence).unwrap_or(i64::MAX));
    if down_for < i64::from(rules.patience_seconds) {
        out.push(Refusal::MayBeBooting {
            node: name.to_string(),
            seconds: down_for,
            patience: rules.patience_seconds,
        });
    }
    if own.is_some_and(|d| !d.silent) {
        out.push(Refusal::KubeletPosts {
            node: name.to_string(),
        });
    }
    let together = down_together(down, name, evidence.now);
    if together.len() > usize::try_from(rules.most_together).unwrap_or(usize::MAX) {
        let others = together
            .iter()
            .filter(|n| *n != name)
            .map(ToString::to_string)
            .collect();
        out.push(Refusal::DownTogether {
            node: name.to_string(),
            others,
            limit: rules.most_together,
        });
    }
}

/// Seconds since the newest boot of the plan's machine in the cloud's own history; 0 while one is under way. The Node of a machine
/// that was just booted has been down for longer than the boot. None: the cloud shows no boot.
fn since_the_boot(plan: &Plan, evidence: EvidenceAt<'_>) -> Option<i64> {
    let facts = evidence.power(&plan.pins.holder).ok()?;
    let boots = facts.jobs.iter().filter(|j| j.change == PowerChange::On);
    // A boot that failed boots nothing.
    let newest = boots
        .filter(|j| j.status != JobStatus::Failed)
        .max_by_key(|j| j.created)?;
    if newest.is_pending() {
        return Some(0);
    }
    let ended = newest.finished.unwrap_or(newest.created);
    Some(evidence.now.duration_since(ended).as_secs().max(0))
}

/// The same before the first step: the patience may run out while the run's own first wait lasts, so that both are not waited
/// for one after the other.
pub fn may_touch_node_later(plan: &Plan, evidence: EvidenceAt<'_>) -> Vec<Refusal> {
    let first = plan.steps.first().filter(|s| s.kind == StepKind::Await);
    let ahead = first.map_or(0, |s| s.patience_seconds.unwrap_or(s.deadline_seconds));
    let waits_anyway = |r: &Refusal| match r {
        Refusal::MayBeBooting {
            seconds, patience, ..
        } => i64::from(*patience).saturating_sub(*seconds) <= i64::from(ahead),
        _ => false,
    };
    let mut all = may_touch_node(plan, evidence);
    all.retain(|r| !waits_anyway(r));
    all
}
