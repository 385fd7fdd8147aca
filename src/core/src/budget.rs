//! PodDisruptionBudgets that cover the stuck pod: what each says about its eviction, and what the policy does about one that
//! refuses it.

use crate::ids::Uid;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What becomes of a stuck pod whose eviction a PodDisruptionBudget refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "remove",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum StuckPods {
    /// It stays: the eviction is asked for again until the step's deadline.
    #[default]
    Evict,
    /// It is deleted by its UID, with its own grace period, after a budget has refused its eviction for so long.
    DeleteByUid {
        /// Seconds between the first refusal and the deletion.
        after_seconds: u32,
    },
}

impl StuckPods {
    /// Seconds for which a budget may refuse before something else is done than to ask again.
    pub fn patience_seconds(self) -> u32 {
        match self {
            Self::Evict => 0,
            Self::DeleteByUid { after_seconds } => after_seconds,
        }
    }

    pub(crate) fn is_evict(&self) -> bool {
        match self {
            Self::Evict => true,
            Self::DeleteByUid { .. } => false,
        }
    }
}

/// A PodDisruptionBudget that covers pods of the claim.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BudgetFacts {
    /// `metadata.name`.
    pub name: String,
    /// The limit in its spec.
    pub limit: BudgetLimit,
    /// `spec.unhealthyPodEvictionPolicy`.
    pub unhealthy: UnhealthyPods,
    /// `status.currentHealthy`.
    pub current_healthy: i32,
    /// `status.desiredHealthy`.
    pub desired_healthy: i32,
    /// `status.disruptionsAllowed`.
    pub disruptions_allowed: i32,
    /// UIDs of the claim's pods that its selector matches.
    pub pods: Vec<Uid>,
}

/// The limit that a PodDisruptionBudget sets, as it is written: a number or a percentage.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BudgetLimit {
    /// `spec.minAvailable`.
    MinAvailable(String),
    /// `spec.maxUnavailable`.
    MaxUnavailable(String),
    /// Neither: Kubernetes then demands one healthy pod.
    Unset,
}

/// `unhealthyPodEvictionPolicy`: when Kubernetes evicts a pod that is not Ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UnhealthyPods {
    /// Only while the budget has all the healthy pods that it demands, or allows a disruption.
    #[default]
    IfHealthyBudget,
    /// Always.
    AlwaysAllow,
}

impl fmt::Display for BudgetFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match &self.limit {
            BudgetLimit::MinAvailable(value) => format!("minAvailable {value}"),
            BudgetLimit::MaxUnavailable(value) => format!("maxUnavailable {value}"),
            BudgetLimit::Unset => "no limit of its own".to_owned(),
        };
        write!(
            f,
            "PodDisruptionBudget {} ({limit}, disruptionsAllowed {}, currentHealthy {}, desiredHealthy {})",
            self.name, self.disruptions_allowed, self.current_healthy, self.desired_healthy
        )
    }
}
