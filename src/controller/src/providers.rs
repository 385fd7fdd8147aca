//! The cloud providers of this process, and a short memory of what they said.

use crate::policies::PlanRules;
use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use reattach_api::{PowerOffRule, SnapshotRule};
use reattach_core::cloud::{
    CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, PowerFacts,
};
use reattach_core::evidence::{CsiSource, OwnClusters};
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{CloudCluster, DriverName, InstanceId, VolumeHandle, VolumeId};
use reattach_core::plan::{Allowed, Commands, Snapshots};
use reattach_core::product::Product;
use reattach_provider_api::{
    Capabilities, EffectError, HandleError, Lookup, Optional, Provider, ProviderError, Purpose,
    Unsupported,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Mutex;

/// Before a run, a look may be answered from an answer of the cloud that is at most so old, 3 s: Linode's CSI driver polls as
/// often. Facts keep the time of the request that brought them, so that rules about the age of facts hold.
pub const SHARED_FOR: SignedDuration = SignedDuration::from_secs(3);
/// The same in the course of a run, and for a failed read, 400 ms: only looks that are due at the same moment share an answer. A
/// read right before an effect is answered by no earlier request at all.
pub const SHARED_AT_ONCE_FOR: SignedDuration = SignedDuration::from_millis(400);
/// Pause after a refusal for which neither the provider nor its limiter knows a time, 1 s.
const UNTIMED: Duration = Duration::from_secs(1);
/// A volume that was asked about within this time is asked about again along with the next one: many recoveries at once
/// cost one request.
const TOGETHER: SignedDuration = SignedDuration::from_secs(3);

/// The clusters that an instance is tagged as belonging to are read again after so long. Who runs a cluster tags its
/// machines when it makes them; only what is asked about in each look costs a request in each.
const CLUSTERS_FOR: SignedDuration = SignedDuration::from_mins(10);

/// The providers in the order of registration.
#[derive(Clone, Default)]
pub struct Providers {
    list: Vec<Arc<Known>>,
}

struct Known {
    provider: Arc<dyn Provider>,
    /// The same provider for the reads right before an effect. They share answers among themselves only, so that none of them
    /// waits for a look.
    before_effects: Option<Arc<Known>>,
    volumes: BatchCache<VolumeId, Lookup<CloudVolume>>,
    instances: BatchCache<InstanceId, Lookup<CloudInstance>>,
    power: BatchCache<InstanceId, Result<PowerFacts, EffectError>>,
    scope: BatchCache<(), Result<CloudScope, EffectError>>,
    clusters: Mutex<BTreeMap<InstanceId, (Timestamp, BTreeSet<CloudCluster>)>>,
}

/// An answer of the cloud that may be a failure.
trait Answer {
    fn has_failed(&self) -> bool;
}

impl<T> Answer for Lookup<T> {
    fn has_failed(&self) -> bool {
        match self {
            Self::Found(_) | Self::NotFound => false,
            Self::Failed(_) => true,
        }
    }
}

impl<T, E> Answer for Result<T, E> {
    fn has_failed(&self) -> bool {
        self.is_err()
    }
}

/// What was wanted, and what was answered: with the moment before the request was sent.
struct BatchCache<K, T> {
    wanted: std::sync::Mutex<BTreeMap<K, Timestamp>>,
    heard: Mutex<BTreeMap<K, (Timestamp, T)>>,
}

impl<K, T> Default for BatchCache<K, T> {
    fn default() -> Self {
        Self {
            wanted: Default::default(),
            heard: Default::default(),
        }
    }
}

impl<K: Ord + Clone, T: Clone + Answer> BatchCache<K, T> {
    /// What is told of each key by an answer to a request that was sent at `since` or later, with the moment before
    /// that request. `ask` is called at most once, with everything that is wanted at the time.
    async fn told(
        &self,
        keys: &[K],
        since: Timestamp,
        now: &impl Fn() -> Timestamp,
        ask: impl AsyncFnOnce(Vec<K>) -> BTreeMap<K, T>,
    ) -> BTreeMap<K, (Timestamp, T)> {
        let asked = now();
        self.want(keys, asked);
        // The lock is held over the call. A caller that waits for it finds the answer, or sends one request for all.
        let mut heard = self.heard.lock().await;
        let failed_since = earlier(asked, SHARED_AT_ONCE_FOR).max(since);
        let fresh = |heard: &BTreeMap<K, (Timestamp, T)>, failed_since| {
            let good = |(at, answer): &&(Timestamp, T)| {
                *at >= since && (!answer.has_failed() || *at >= failed_since)
            };
            let told = |key: &K| Some((key.clone(), heard.get(key).filter(good)?.clone()));
            keys.iter().filter_map(told).collect::<BTreeMap<_, _>>()
        };
        if fresh(&heard, failed_since).len() < keys.len() {
            // Callers that arrive at the same moment add what they want.
            tokio::task::yield_now().await;
            let at = now();
            heard.retain(|_, (heard, _)| at.duration_since(*heard) < TOGETHER);
            let answers = ask(self.want(keys, at)).await;
            heard.extend(answers.into_iter().map(|(key, answer)| (key, (at, answer))));
        }
        // A failure that took long is still the answer.
        fresh(&heard, since)
    }

    /// Notes what is wanted now. Answers what is wanted altogether.
    fn want(&self, keys: &[K], at: Timestamp) -> Vec<K> {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        wanted.retain(|_, asked| at.duration_since(*asked) < TOGETHER);
        wanted.extend(keys.iter().map(|key| (key.clone(), at)));
        wanted.keys().cloned().collect()
    }
}

fn earlier(than: Timestamp, by: SignedDuration) -> Timestamp {
    than.saturating_sub(by).unwrap_or(Timestamp::MIN)
}

impl Known {
    fn new(provider: Arc<dyn Provider>, before_effects: Option<Arc<Self>>) -> Self {
        Self {
            provider,
            before_effects,
            volumes: BatchCache::default(),
            instances: BatchCache::default(),
            power: BatchCache::default(),
            scope: BatchCache::default(),
            clusters: Mutex::default(),
        }
    }
}

/// One volume at its provider.
#[derive(Clone)]
pub struct Located {
    known: Arc<Known>,
    /// The cloud's identifier of the volume.
    pub id: VolumeId,
}

impl Providers {
    /// Registers a provider.
    pub fn register(&mut self, provider: Arc<dyn Provider>) {
        let before_effects = provider.before_effects();
        let before_effects = before_effects.map(|p| Arc::new(Known::new(p, None)));
        self.list
            .push(Arc::new(Known::new(provider, before_effects)));
    }

    /// Every provider.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.list.iter().map(|k| &k.provider)
    }

    /// The instance behind a `spec.providerID`.
    pub fn instance(&self, provider_id: &str) -> Option<InstanceId> {
        self.all()
            .find_map(|p| p.resolve_instance(provider_id))
            .and_then(Result::ok)
    }

    /// The provider that knows a `spec.providerID`.
    pub fn of_instance(&self, provider_id: &str) -> Option<&Arc<dyn Provider>> {
        self.all()
            .find(|p| p.resolve_instance(provider_id).is_some())
    }

    /// The volume behind a CSI source.
    ///
    /// # Errors
    /// A provider knows the driver and cannot read the handle.
    pub fn locate(&self, csi: &CsiSource) -> Result<Option<Located>, HandleError> {
        for known in &self.list {
            if let Some(found) = known.provider.resolve_volume(&csi.driver, &csi.handle) {
                return found.map(|id| {
                    Some(Located {
                        known: known.clone(),
                        id,
                    })
                });
            }
        }
        Ok(None)
    }

    /// A volume by its identifier alone, for when nothing in the cluster leads to it any more: at the provider that answers
    /// in one of these scopes, or at the only provider. With the scope, if it is one of them.
    pub async fn locate_again(
        &self,
        id: &VolumeId,
        scopes: &[&CloudScope],
        since: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> Option<(Located, Option<CloudScope>)> {
        let at = |known: &Arc<Known>| Located {
            known: known.clone(),
            id: id.clone(),
        };
        for known in self.list.iter().filter(|_| !scopes.is_empty()) {
            if let Ok(scope) = at(known).scope(since, &now).await
                && scopes.contains(&&scope)
            {
                return Some((at(known), Some(scope)));
            }
        }
        match self.list.as_slice() {
            [only] => Some((at(only), None)),
            _ => None,
        }
    }
}

impl Located {
    /// The provider.
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.known.provider
    }

    /// The same volume for the reads right before an effect: they wait neither for looks nor behind them.
    pub fn before_effects(self) -> Self {
        let known = self.known.before_effects.clone().unwrap_or(self.known);
        Self { known, id: self.id }
    }

    /// For how long the provider takes no effect, because its rate limit refused one. `None`: it takes effects.
    pub fn effects_held_for(&self) -> Option<Duration> {
        self.provider().limiter()?.held_for(Purpose::Effect)
    }

    /// The volume as the cloud describes it, by an answer to a request that was sent at `since` or later. The fact
    /// carries the moment before its request was sent.
    pub async fn describe(
        &self,
        since: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> Fact<CloudVolume> {
        let ask = async |ids: Vec<VolumeId>| self.provider().describe_volumes(&ids).await;
        let told = self
            .known
            .volumes
            .told(std::slice::from_ref(&self.id), since, &now, ask)
            .await;
        self.looked_up(told.get(&self.id), now)
    }

    /// Instances of the same cloud, with dates and sharing as in [`Located::describe`].
    pub async fn instances(
        &self,
        ids: &[InstanceId],
        since: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> BTreeMap<InstanceId, Fact<CloudInstance>> {
        let ask = async |ids: Vec<InstanceId>| self.provider().describe_instances(&ids).await;
        let told = self.known.instances.told(ids, since, &now, ask).await;
        ids.iter()
            .map(|id| (id.clone(), self.looked_up(told.get(id), &now)))
            .collect()
    }

    /// The names of clusters in the tags of these instances, as read within the last ten minutes. An instance that does not
    /// exist any more has no tags. Where one could not be read, the names of the others count, if there are any.
    pub async fn clusters(
        &self,
        ids: &BTreeSet<InstanceId>,
        now: impl Fn() -> Timestamp,
    ) -> OwnClusters {
        // As in `told`, the lock is held over the call.
        let mut known = self.known.clusters.lock().await;
        let at = now();
        known.retain(|_, (read, _)| at.duration_since(*read) < CLUSTERS_FOR);
        let rest: Vec<InstanceId> = ids
            .iter()
            .filter(|id| !known.contains_key(id))
            .cloned()
            .collect();
        let mut failed = None;
        let looks = if rest.is_empty() {
            BTreeMap::new()
        } else {
            self.provider().describe_instances(&rest).await
        };
        for (id, look) in looks {
            match look {
                Lookup::Found(instance) => drop(known.insert(id, (at, instance.owner.clusters))),
                Lookup::NotFound => {}
                Lookup::Failed(error) => failed = Some(error.to_string()),
            }
        }
        let names: BTreeSet<_> = ids
            .iter()
            .filter_map(|id| known.get(id))
            .flat_map(|(_, names)| names)
            .cloned()
            .collect();
        match failed {
            Some(why) if names.is_empty() => OwnClusters::Unread { why },
            Some(_) | None => OwnClusters::Known { names },
        }
    }

    /// What happened to the power of instances since `history`, with dates and sharing as in [`Located::describe`].
    /// Not known where the provider keeps no such history.
    pub async fn power(
        &self,
        ids: &[InstanceId],
        history: Timestamp,
        since: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> BTreeMap<InstanceId, Fact<PowerFacts>> {
        let one = async |id: InstanceId| {
            let facts = self.provider().power_facts(&id, history).await;
            (id, facts)
        };
        let ask = async |ids: Vec<InstanceId>| {
            join_all(ids.into_iter().map(one))
                .await
                .into_iter()
                .collect()
        };
        let told = self.known.power.told(ids, since, &now, ask).await;
        let fact = |id: &InstanceId| match told.get(id) {
            Some((at, Ok(facts))) => Fact::present(facts.clone(), self.source(), *at),
            Some((at, Err(EffectError::Failed(ProviderError::NotFound { .. })))) => {
                Fact::absent(self.source(), *at)
            }
            Some((at, Err(error))) => self.unread(error, *at, &now),
            None => Fact::unknown("it was not read", self.source(), now()),
        };
        ids.iter().map(|id| (id.clone(), fact(id))).collect()
    }

    /// Who answers, by an answer to a request that was sent at `since` or later.
    ///
    /// # Errors
    /// The provider cannot tell, or could not be asked.
    pub async fn scope(
        &self,
        since: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> Result<CloudScope, EffectError> {
        let ask = async |_| BTreeMap::from([((), self.provider().scope().await)]);
        let told = self
            .known
            .scope
            .told(&[()], since, &now, ask)
            .await
            .remove(&());
        told.map_or_else(
            || Err(Unsupported::new(self.provider().name(), Optional::Scope).into()),
            |(_, answer)| answer,
        )
    }

    fn source(&self) -> Source {
        Source::Cloud(self.provider().name().to_owned())
    }

    /// A fact that could not be read, with the time when the provider may be asked again if its rate limit was the cause.
    fn unread<T>(
        &self,
        error: &EffectError,
        at: Timestamp,
        now: impl Fn() -> Timestamp,
    ) -> Fact<T> {
        let EffectError::Failed(ProviderError::Throttled {
            operation,
            retry_after,
        }) = error
        else {
            let make = if error.is_away() {
                Fact::away
            } else {
                Fact::unknown
            };
            return make(error.to_string(), self.source(), at);
        };
        let held = || self.provider().limiter()?.held_for(Purpose::Look);
        let pause = retry_after.or_else(held).unwrap_or(UNTIMED);
        let until = SignedDuration::try_from(pause)
            .ok()
            .and_then(|pause| now().checked_add(pause).ok())
            .unwrap_or(Timestamp::MAX);
        // Without the seconds, which differ from look to look.
        let why = ProviderError::Throttled {
            operation: operation.clone(),
            retry_after: None,
        };
        Fact::throttled(why.to_string(), until, self.source(), at)
    }

    fn looked_up<T: Clone>(
        &self,
        told: Option<&(Timestamp, Lookup<T>)>,
        now: impl Fn() -> Timestamp,
    ) -> Fact<T> {
        match told {
            Some((at, Lookup::Found(item))) => Fact::present(item.clone(), self.source(), *at),
            Some((at, Lookup::NotFound)) => Fact::absent(self.source(), *at),
            Some((at, Lookup::Failed(error))) => self.unread(&error.clone().into(), *at, &now),
            None => Fact::unknown(
                "the provider left it out of its answer",
                self.source(),
                now(),
            ),
        }
    }

    /// The volume's snapshots that were ordered with this label. The fact carries the moment before the request was sent.
    pub async fn snapshots(
        &self,
        label: &str,
        now: impl Fn() -> Timestamp,
    ) -> Fact<Vec<CloudSnapshot>> {
        let at = now();
        match self.provider().snapshots(&self.id, label).await {
            Ok(snapshots) => Fact::present(snapshots, self.source(), at),
            Err(error) => self.unread(&error, at, &now),
        }
    }

    /// The volume's jobs since a moment. The fact carries the moment before the request was sent.
    pub async fn jobs(&self, since: Timestamp, now: impl Fn() -> Timestamp) -> Fact<Vec<CloudJob>> {
        let at = now();
        match self.provider().jobs(&self.id, since).await {
            Ok(jobs) => Fact::present(jobs, self.source(), at),
            Err(error) => self.unread(&error.into(), at, &now),
        }
    }
}

impl Providers {
    /// What the volume's cloud can do; nothing where no provider knows it.
    fn capabilities(&self, evidence: &reattach_core::evidence::Evidence) -> Capabilities {
        let csi = evidence.volume.shown().and_then(|v| v.csi.as_ref());
        let located = csi.and_then(|csi| self.locate(csi).ok().flatten());
        located
            .map(|l| l.provider().capabilities())
            .unwrap_or_default()
    }

    /// What the volume's cloud can do, and this rule of a policy or a person allows; with the policy's other rules.
    pub fn allowed(
        &self,
        evidence: &reattach_core::evidence::Evidence,
        rule: PowerOffRule,
        by_a_person: bool,
        rules: PlanRules,
    ) -> Allowed {
        let can = self.capabilities(evidence);
        let snapshot = rules.snapshot;
        Allowed {
            power_off: can.can_fence && (by_a_person || rule != PowerOffRule::Never),
            power_on: can.can_fence && rule == PowerOffRule::AllowedAndOn,
            keep_off: can.can_keep_off,
            // Where a snapshot is required and cannot be made, nothing is detached by force.
            force: can.can_force && (can.can_snapshot || snapshot != SnapshotRule::Required),
            snapshot: match snapshot {
                SnapshotRule::Never => Snapshots::Never,
                _ if !can.can_snapshot => Snapshots::Never,
                SnapshotRule::BestEffort => Snapshots::BestEffort,
                SnapshotRule::Required => Snapshots::Required,
            },
            empty_dirs: rules.empty_dirs.into(),
            stuck_pods: rules.stuck_pods,
        }
    }

    /// What a person would type at the cloud for this volume and its holder.
    pub fn by_hand(&self, evidence: &reattach_core::evidence::Evidence) -> ByHand {
        let located = evidence
            .volume
            .shown()
            .and_then(|v| v.csi.as_ref())
            .and_then(|c| self.locate(c).ok().flatten());
        let holder = evidence
            .cloud_volume
            .shown()
            .and_then(|v| v.holders.first());
        match (located, holder) {
            (Some(l), Some(holder)) => {
                let provider = l.provider();
                ByHand {
                    detach: provider.detach_command(&l.id, holder),
                    power_off: provider.power_command(holder, false),
                    power_on: provider.power_command(holder, true),
                    keep_off: provider.restart_command(holder, false),
                    let_boot: provider.restart_command(holder, true),
                    snapshot: provider.snapshot_command(&l.id),
                }
            }
            _ => {
                let console = |what: &str| format!("({what} in the cloud's console)");
                ByHand {
                    detach: console("detach the volume"),
                    power_off: console("power the instance off"),
                    power_on: console("power the instance on"),
                    keep_off: console("switch the instance's automatic restart off"),
                    let_boot: console("switch the instance's automatic restart on"),
                    snapshot: console("make a snapshot of the volume"),
                }
            }
        }
    }
}

/// What a person would type at the cloud instead of the steps of a plan.
#[derive(Clone, Debug)]
pub struct ByHand {
    detach: String,
    power_off: String,
    power_on: String,
    keep_off: String,
    let_boot: String,
    snapshot: String,
}

impl ByHand {
    /// As a plan is asked for with them.
    pub fn commands(&self) -> Commands<'_> {
        Commands {
            detach: &self.detach,
            power_off: &self.power_off,
            power_on: &self.power_on,
            keep_off: &self.keep_off,
            let_boot: &self.let_boot,
            snapshot: &self.snapshot,
        }
    }
}

/// The CSI drivers of the clouds that reattach has a provider for, and the provider of each: for advice alone.
const DRIVERS: [(&str, &str); 2] = [
    ("linodebs.csi.linode.com", "linode"),
    ("ebs.csi.aws.com", "aws"),
];

impl Providers {
    /// What to do about a CSI driver that none of these providers knows, as one sentence. `None`: one does.
    pub fn unknown_driver(&self, driver: &str) -> Option<String> {
        // Whether the handle can be read is another question.
        let (name, any) = (DriverName::from(driver), VolumeHandle::from("0"));
        if self.all().any(|p| p.resolve_volume(&name, &any).is_some()) {
            return None;
        }
        let asked: Vec<&str> = self.all().map(|p| p.name()).collect();
        let with = |more| {
            asked
                .iter()
                .copied()
                .chain(more)
                .collect::<Vec<_>>()
                .join(",")
        };
        let provider = DRIVERS
            .iter()
            .find(|(known, _)| *known == driver)
            .map(|(_, provider)| *provider);
        let fix = match provider {
            Some(name) if BUILT_IN.contains(&name) => {
                format!("add --provider {}", with(Some(name)))
            }
            Some(name) => format!("for provider {name} build with --features {name}"),
            None => "docs/providers.md has how to add one".to_owned(),
        };
        Some(format!(
            "no provider of this installation knows driver {driver}; asked: {}; built with: {}; {fix}",
            if asked.is_empty() {
                "none".to_owned()
            } else {
                with(None)
            },
            BUILT_IN.join(", ")
        ))
    }
}

/// The providers of this build.
pub const BUILT_IN: &[&str] = &[
    "linode",
    #[cfg(feature = "aws")]
    "aws",
];

/// What to do about a provider that exists and was not compiled in.
fn hint(name: &str) -> &'static str {
    if name == "aws" {
        "; build with --features aws"
    } else {
        ""
    }
}

/// A provider that could not be set up, as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No such provider in this build.
    #[error("there is no provider {name:?} in this build, which has: {}{}", BUILT_IN.join(", "), hint(name))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// Its settings are missing or wrong.
    #[error("provider {name}: {why}")]
    Settings {
        /// The provider.
        name: String,
        /// Which setting, and the fix.
        why: String,
    },
}

/// Sets a provider up from its environment variables, for the requests of `product`.
///
/// # Errors
/// [`SetupError`].
pub fn from_env(name: &str, product: Product) -> Result<Arc<dyn Provider>, SetupError> {
    let bad = |why: String| SetupError::Settings {
        name: name.to_owned(),
        why,
    };
    match name {
        "linode" => {
            let config = reattach_linode::LinodeConfig::from_vars(|key| std::env::var(key).ok());
            let config = config.map_err(|e| bad(e.to_string()))?.for_product(product);
            Ok(Arc::new(
                reattach_linode::LinodeProvider::connect(config).map_err(|e| bad(e.to_string()))?,
            ))
        }
        #[cfg(feature = "aws")]
        "aws" => {
            let config = reattach_aws::AwsConfig::from_vars(|key| std::env::var(key).ok());
            let config = config.map_err(|e| bad(e.to_string()))?.for_product(product);
            Ok(Arc::new(
                reattach_aws::AwsProvider::connect(config).map_err(|e| bad(e.to_string()))?,
            ))
        }
        _ => Err(SetupError::Unknown {
            name: name.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_that_was_left_out_says_how_to_get_it() {
        let sentence = |name: &str| {
            SetupError::Unknown {
                name: name.to_owned(),
            }
            .to_string()
        };
        let aws = sentence("aws");
        assert!(aws.ends_with("; build with --features aws"), "{aws}");
        let azure = sentence("azure");
        assert!(
            azure.ends_with(&format!("which has: {}", BUILT_IN.join(", "))),
            "{azure}"
        );
    }
}
