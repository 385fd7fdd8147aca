//! What a recovery may do, and by whose word. Effects inside a namespace need a right in that namespace; effects on a whole
//! node need a right at cluster scope, or a policy with rules for nodes. The policy that rules a claim is the ceiling for
//! every person without a right at cluster scope.
//!
//! # Expected flow
//! The controller reads the policy and asks the API server about each person's rights, and puts the answer into the evidence
//! as a fact with an age. The machine reads it before every effect, so that a right or a policy that was taken away since the
//! approval stops the run.
//!
//! # Guarantees
//! A right that could not be looked up allows nothing. A policy without rules for nodes allows effects on nodes only where it
//! allows machines to be powered off, which takes a right of its own to write.

use crate::ids::{NodeName, PlanHash};
use crate::policy::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which nodes may be fenced unattended, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRules {
    /// Labels that the Node must carry. Empty: every node.
    pub match_labels: BTreeMap<String, String>,
    /// Seconds for which a node must have been seen not Ready before its machine is powered off: longer than a boot takes.
    pub patience_seconds: u32,
    /// How many nodes may have gone down together for one of them still to be powered off.
    pub most_together: u32,
    /// Fence a node although claims on it are opted out.
    pub override_opt_outs: bool,
}

impl Default for NodeRules {
    fn default() -> Self {
        Self {
            match_labels: BTreeMap::new(),
            patience_seconds: 180,
            most_together: 1,
            override_opt_outs: false,
        }
    }
}

impl NodeRules {
    /// Do the rules apply to a Node with these labels?
    pub fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// What the policy that rules the claim allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ceiling {
    /// The policy's name.
    pub policy: String,
    /// Its mode.
    pub mode: Mode,
    /// Its runbook.
    pub runbook: String,
    /// May machines be powered off?
    pub power_off: bool,
    /// May a stuck pod be deleted whose eviction a PodDisruptionBudget refuses?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deletes_stuck_pods: bool,
    /// Its rules for nodes, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodeRules>,
}

/// Where a person has a right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "reach",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Reach {
    /// Neither in the recovery's namespace nor in the cluster.
    Nowhere,
    /// In the recovery's namespace.
    Namespace,
    /// At cluster scope.
    Cluster,
    /// The API server could not be asked.
    Unknown {
        /// Why not.
        why: String,
    },
}

/// A person whose word the record has, with how far it reaches now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Person {
    /// The user name.
    pub name: String,
    /// Where they have the right that the word needs.
    #[serde(flatten)]
    pub reach: Reach,
}

/// The origin of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "askedBy", rename_all = "camelCase")]
pub enum Asker {
    /// The controller made it under a policy, and goes as far as the policy.
    Controller,
    /// A person made it. The reach is that of the verb `approve`, which mode Auto needs.
    Person(Person),
}

/// A person's approval of one plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approved {
    /// The plan.
    pub plan: PlanHash,
    /// Who approved it, with the reach of the verb `approve`.
    pub by: Person,
}

/// What a recovery may do now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mandate {
    /// The mode that the recovery asks for.
    pub mode: Mode,
    /// The runbook that the recovery asks for.
    pub runbook: String,
    /// The policy that rules the claim. None: no policy selects it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceiling: Option<Ceiling>,
    /// Who asked for the recovery.
    #[serde(flatten)]
    pub asker: Asker,
    /// Who approved a plan of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approved>,
    /// Who allowed it to power the holder off, with the reach of the verb `poweroff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub power_off: Option<Person>,
    /// Who declared that the holder cannot write, with the reach of the verb `declare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Person>,
}

/// Why a recovery may not do something.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "denied",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants name the fields.
pub enum Denial {
    /// No policy selects the claim.
    #[error(
        "no RecoveryPolicy selects the claim, so nothing is done for {who}; ask a cluster administrator for a policy, or let a person approve who has the verb approve on volumerecoveries at cluster scope"
    )]
    NoPolicy { who: String },
    /// The policy's mode is more cautious than the recovery's.
    #[error(
        "RecoveryPolicy {policy} allows at most mode {allows} for this claim and the recovery asks for {asks}, so nothing is done for {who}; a person with the verb approve on volumerecoveries at cluster scope may go further"
    )]
    Mode {
        policy: String,
        allows: Mode,
        asks: Mode,
        who: String,
    },
    /// The policy names another runbook.
    #[error(
        "RecoveryPolicy {policy} names runbook {allows} for this claim and the recovery asks for {asks}, so nothing is done for {who}; ask for it again with --runbook {allows}"
    )]
    Runbook {
        policy: String,
        allows: String,
        asks: String,
        who: String,
    },
    /// A person does not have the right that their word needs.
    #[error(
        "{who} does not have the verb {verb} on volumerecoveries in this namespace (any more), so their decision does not count; ask a person who has it"
    )]
    NoRight { who: String, verb: String },
    /// The API server could not be asked about a right.
    #[error(
        "whether {who} has the verb {verb} on volumerecoveries could not be looked up ({why}), so their decision does not count yet; reattach asks again"
    )]
    RightUnknown {
        who: String,
        verb: String,
        why: String,
    },
    /// There is no word of a person.
    #[error("nobody has approved plan {plan}")]
    NotApproved { plan: String },
    /// The mode changes nothing.
    #[error("mode {mode} changes nothing")]
    OnlyLooks { mode: Mode },
    /// The policy does not let machines be powered off.
    #[error(
        "RecoveryPolicy {policy} lets no machine be powered off, so the permission of {who} does not count; it takes the verb poweroff on volumerecoveries at cluster scope"
    )]
    PowerOff { policy: String, who: String },
    /// Nobody allowed a power-off.
    #[error("neither a policy nor a person lets the machine be powered off")]
    NoPowerOff,
    /// Nobody's word reaches as far as a node.
    #[error(
        "an effect on the whole of node {node} needs more than a right in one namespace, and {lacks}, so the node is left alone; write spec.nodes into the RecoveryPolicy, or let a person approve who has the verb approve on volumerecoveries at cluster scope"
    )]
    Nodes { node: String, lacks: String },
    /// The rules for nodes do not select this one.
    #[error(
        "the rules for nodes of RecoveryPolicy {policy} do not select node {node} (spec.nodes.matchLabels), so it is left alone; a person with the verb approve on volumerecoveries at cluster scope may go further"
    )]
    NodeNotSelected { node: String, policy: String },
}

impl Denial {
    /// May it pass by waiting, without anyone's help?
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::RightUnknown { .. })
    }
}

/// The word by which a whole node may be touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeWord {
    /// A policy's rules for nodes.
    Rules {
        /// The policy.
        policy: String,
        /// Its rules.
        rules: NodeRules,
    },
    /// A person with a right at cluster scope.
    Person {
        /// Their name.
        name: String,
        /// They approved this very plan: patience and brake are theirs to judge.
        saw_the_plan: bool,
    },
}

impl Person {
    /// Does the word count, within the policy or beyond it?
    fn counts(&self, verb: &str) -> Result<Wide, Denial> {
        match &self.reach {
            Reach::Cluster => Ok(Wide::Cluster),
            Reach::Namespace => Ok(Wide::Namespace),
            Reach::Nowhere => Err(Denial::NoRight {
                who: self.name.clone(),
                verb: verb.to_owned(),
            }),
            Reach::Unknown { why } => Err(Denial::RightUnknown {
                who: self.name.clone(),
                verb: verb.to_owned(),
                why: why.clone(),
            }),
        }
    }
}

#[derive(PartialEq, Eq)]
enum Wide {
    Namespace,
    Cluster,
}

impl Mandate {
    /// The person whose word lets the plan run; none where that is the controller's policy.
    fn word(&self, plan: &PlanHash) -> Result<Option<&Person>, Denial> {
        match (self.mode, &self.asker) {
            (Mode::Observe | Mode::DryRun, _) => Err(Denial::OnlyLooks { mode: self.mode }),
            (Mode::Auto, Asker::Controller) => Ok(None),
            (Mode::Auto, Asker::Person(person)) => Ok(Some(person)),
            (Mode::Approve, _) => match &self.approved {
                Some(approved) if approved.plan == *plan => Ok(Some(&approved.by)),
                _ => Err(Denial::NotApproved {
                    plan: plan.to_string(),
                }),
            },
        }
    }

    /// May the plan run at all?
    ///
    /// # Errors
    /// [`Denial`].
    pub fn may_act(&self, plan: &PlanHash) -> Result<(), Denial> {
        let word = self.word(plan)?;
        if let Some(person) = word
            && person.counts("approve")? == Wide::Cluster
        {
            return Ok(());
        }
        let who = word
            .map_or("reattach itself", |p| p.name.as_str())
            .to_owned();
        let Some(ceiling) = &self.ceiling else {
            return Err(Denial::NoPolicy { who });
        };
        let policy = ceiling.policy.clone();
        if ceiling.mode < self.mode {
            return Err(Denial::Mode {
                policy,
                allows: ceiling.mode,
                asks: self.mode,
                who,
            });
        }
        // The controller took the runbook from the policy; a policy that names another one since changes what comes next.
        if matches!(self.asker, Asker::Person(_)) && ceiling.runbook != self.runbook {
            let (allows, asks) = (ceiling.runbook.clone(), self.runbook.clone());
            return Err(Denial::Runbook {
                policy,
                allows,
                asks,
                who,
            });
        }
        Ok(())
    }

    /// May the holder's machine be powered off?
    ///
    /// # Errors
    /// [`Denial`].
    pub fn may_power_off(&self) -> Result<(), Denial> {
        let by_policy = self.ceiling.as_ref().is_some_and(|c| c.power_off);
        let Some(person) = &self.power_off else {
            return match self.asker {
                Asker::Controller if by_policy => Ok(()),
                Asker::Controller | Asker::Person(_) => Err(Denial::NoPowerOff),
            };
        };
        if by_policy && self.asker == Asker::Controller {
            return Ok(());
        }
        match person.counts("poweroff")? {
            Wide::Cluster => Ok(()),
            Wide::Namespace if by_policy => Ok(()),
            Wide::Namespace => {
                let policy = self
                    .ceiling
                    .as_ref()
                    .map_or("(none)", |c| c.policy.as_str())
                    .to_owned();
                Err(Denial::PowerOff {
                    policy,
                    who: person.name.clone(),
                })
            }
        }
    }

    /// By whose word may the whole of this node be touched?
    ///
    /// # Errors
    /// [`Denial::Nodes`].
    pub fn over_node(&self, node: &NodeName, plan: &PlanHash) -> Result<NodeWord, Denial> {
        let approved = self
            .approved
            .as_ref()
            .filter(|a| self.mode == Mode::Approve && a.plan == *plan);
        let wide = |person: &&Person| person.reach == Reach::Cluster;
        if let Some(person) = approved.map(|a| &a.by).filter(wide) {
            return Ok(NodeWord::Person {
                name: person.name.clone(),
                saw_the_plan: true,
            });
        }
        let asker = match &self.asker {
            Asker::Person(person) if self.mode == Mode::Auto => Some(person),
            Asker::Controller | Asker::Person(_) => None,
        };
        let others = [asker, self.declared.as_ref(), self.power_off.as_ref()];
        if let Some(person) = others.into_iter().flatten().find(wide) {
            return Ok(NodeWord::Person {
                name: person.name.clone(),
                saw_the_plan: false,
            });
        }
        let lacks = match &self.ceiling {
            None => "no RecoveryPolicy selects the claim".to_owned(),
            Some(c) => match (&c.nodes, c.power_off) {
                (Some(rules), _) => {
                    return Ok(NodeWord::Rules {
                        policy: c.policy.clone(),
                        rules: rules.clone(),
                    });
                }
                (None, true) => {
                    return Ok(NodeWord::Rules {
                        policy: c.policy.clone(),
                        rules: NodeRules::default(),
                    });
                }
                (None, false) => format!("RecoveryPolicy {} has no rules for nodes", c.policy),
            },
        };
        Err(Denial::Nodes {
            node: node.to_string(),
            lacks,
        })
    }
}
