//! The cloud providers of this process, and a short memory of what they said.

use jiff::{SignedDuration, Timestamp};
use reattach_core::cloud::{CloudJob, CloudVolume};
use reattach_core::evidence::CsiSource;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_provider_api::{HandleError, Lookup, Provider};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Mutex;

/// An answer is good enough for so long where nothing asks for a newer one.
pub const SHARED_FOR: SignedDuration = SignedDuration::from_millis(400);
/// A volume that was asked about within this time is asked about again along with the next one: many recoveries at once
/// cost one request.
const TOGETHER: SignedDuration = SignedDuration::from_secs(3);

/// The providers in the order of registration.
#[derive(Clone, Default)]
pub struct Providers {
    list: Vec<Arc<Known>>,
}

struct Known {
    provider: Arc<dyn Provider>,
    memory: Mutex<Memory>,
}

/// What was asked, and what was answered: with the moment before the request was sent.
#[derive(Default)]
struct Memory {
    wanted: BTreeMap<VolumeId, Timestamp>,
    heard: BTreeMap<VolumeId, (Timestamp, Lookup<CloudVolume>)>,
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
        self.list.push(Arc::new(Known { provider, memory: Mutex::default() }));
    }

    /// Every provider.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Provider>> {
        self.list.iter().map(|k| &k.provider)
    }

    /// The instance behind a `spec.providerID`.
    pub fn instance(&self, provider_id: &str) -> Option<InstanceId> {
        self.all().find_map(|p| p.resolve_instance(provider_id)).and_then(Result::ok)
    }

    /// The volume behind a CSI source.
    ///
    /// # Errors
    /// A provider knows the driver and cannot read the handle.
    pub fn locate(&self, csi: &CsiSource) -> Result<Option<Located>, HandleError> {
        for known in &self.list {
            if let Some(found) = known.provider.resolve_volume(&csi.driver, &csi.handle) {
                return found.map(|id| Some(Located { known: known.clone(), id }));
            }
        }
        Ok(None)
    }
}

impl Located {
    /// The provider.
    pub fn provider(&self) -> &Arc<dyn Provider> {
        &self.known.provider
    }

    /// The volume as the cloud describes it, by an answer to a request that was sent at `since` or later. The fact
    /// carries the moment before its request was sent.
    pub async fn describe(&self, since: Timestamp, now: impl Fn() -> Timestamp) -> Fact<CloudVolume> {
        // The lock is held over the call: whoever waits for it finds the answer, or goes on with a request for all.
        let mut memory = self.known.memory.lock().await;
        if memory.heard.get(&self.id).is_none_or(|(at, _)| *at < since) {
            let at = now();
            memory.wanted.insert(self.id.clone(), at);
            memory.wanted.retain(|_, asked| at.duration_since(*asked) < TOGETHER);
            memory.heard.retain(|_, (heard, _)| at.duration_since(*heard) < TOGETHER);
            let ids: Vec<VolumeId> = memory.wanted.keys().cloned().collect();
            let answers = self.provider().describe_volumes(&ids).await;
            memory.heard.extend(answers.into_iter().map(|(id, answer)| (id, (at, answer))));
        }
        let source = Source::Cloud(self.provider().name().to_owned());
        match memory.heard.get(&self.id).filter(|(at, _)| *at >= since) {
            Some((at, Lookup::Found(volume))) => Fact::present(volume.clone(), source, *at),
            Some((at, Lookup::NotFound)) => Fact::absent(source, *at),
            Some((at, Lookup::Failed(error))) => Fact::unknown(error.to_string(), source, *at),
            None => Fact::unknown("the provider left the volume out of its answer", source, now()),
        }
    }

    /// The volume's jobs since a moment. The fact carries the moment before the request was sent.
    pub async fn jobs(&self, since: Timestamp, now: impl Fn() -> Timestamp) -> Fact<Vec<CloudJob>> {
        let at = now();
        let source = Source::Cloud(self.provider().name().to_owned());
        match self.provider().jobs(&self.id, since).await {
            Ok(jobs) => Fact::present(jobs, source, at),
            Err(error) => Fact::unknown(error.to_string(), source, at),
        }
    }
}

impl Providers {
    /// What a person would type to detach the volume at the cloud.
    pub fn detach_command(&self, evidence: &reattach_core::evidence::Evidence) -> String {
        let located =
            evidence.volume.shown().and_then(|v| v.csi.as_ref()).and_then(|c| self.locate(c).ok().flatten());
        let holder = evidence.cloud_volume.shown().and_then(|v| v.holders.first());
        match (located, holder) {
            (Some(l), Some(holder)) => l.provider().detach_command(&l.id, holder),
            _ => "(detach the volume in the cloud's console)".to_owned(),
        }
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
    if name == "aws" { "; build with --features aws" } else { "" }
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

/// Sets a provider up from its environment variables.
///
/// # Errors
/// [`SetupError`].
pub fn from_env(name: &str) -> Result<Arc<dyn Provider>, SetupError> {
    let bad = |why: String| SetupError::Settings { name: name.to_owned(), why };
    match name {
        "linode" => {
            let config = reattach_linode::LinodeConfig::from_vars(|key| std::env::var(key).ok());
            let config = config.map_err(|e| bad(e.to_string()))?;
            Ok(Arc::new(reattach_linode::LinodeProvider::connect(config).map_err(|e| bad(e.to_string()))?))
        }
        #[cfg(feature = "aws")]
        "aws" => {
            let config = reattach_aws::AwsConfig::from_vars(|key| std::env::var(key).ok());
            let config = config.map_err(|e| bad(e.to_string()))?;
            Ok(Arc::new(reattach_aws::AwsProvider::connect(config).map_err(|e| bad(e.to_string()))?))
        }
        _ => Err(SetupError::Unknown { name: name.to_owned() }),
    }
}
