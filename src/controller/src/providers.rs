//! The cloud providers of this process, and a short memory of what they said.

use reattach_core::cloud::{CloudJob, CloudVolume};
use reattach_core::evidence::CsiSource;
use reattach_core::fact::{Fact, Source};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_provider_api::{HandleError, Lookup, Provider};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// Answers of one moment are shared by all recoveries that look within this time.
const MEMORY: Duration = Duration::from_millis(400);

/// The providers in the order of registration.
#[derive(Clone, Default)]
pub struct Providers {
    list: Vec<Arc<Known>>,
}

struct Known {
    provider: Arc<dyn Provider>,
    memory: Mutex<BTreeMap<VolumeId, (Instant, Lookup<CloudVolume>)>>,
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

    /// The volume as the cloud describes it; `fresh` asks anew even if an answer of this moment is remembered.
    pub async fn describe(&self, fresh: bool, now: impl Fn() -> jiff::Timestamp) -> Fact<CloudVolume> {
        // The lock is held over the call, so that recoveries that look at once share one answer.
        let mut memory = self.known.memory.lock().await;
        memory.retain(|_, (at, _)| at.elapsed() < MEMORY);
        let source = Source::Cloud(self.provider().name().to_owned());
        let answer = match memory.get(&self.id).filter(|_| !fresh) {
            Some((_, answer)) => answer.clone(),
            None => {
                let ids = [self.id.clone()];
                let asked = Instant::now();
                let mut answers = self.provider().describe_volumes(&ids).await;
                match answers.remove(&self.id) {
                    Some(answer) => {
                        memory.insert(self.id.clone(), (asked, answer.clone()));
                        answer
                    }
                    None => {
                        return Fact::unknown(
                            "the provider left the volume out of its answer",
                            source,
                            now(),
                        );
                    }
                }
            }
        };
        match answer {
            Lookup::Found(volume) => Fact::present(volume, source, now()),
            Lookup::NotFound => Fact::absent(source, now()),
            Lookup::Failed(error) => Fact::unknown(error.to_string(), source, now()),
        }
    }

    /// The volume's jobs since a moment.
    pub async fn jobs(
        &self,
        since: jiff::Timestamp,
        now: impl Fn() -> jiff::Timestamp,
    ) -> Fact<Vec<CloudJob>> {
        let source = Source::Cloud(self.provider().name().to_owned());
        match self.provider().jobs(&self.id, since).await {
            Ok(jobs) => Fact::present(jobs, source, now()),
            Err(error) => Fact::unknown(error.to_string(), source, now()),
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

/// A provider that could not be set up, as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No such provider in this build.
    #[error("provider {name:?} is not compiled in; this build has: linode")]
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
        _ => Err(SetupError::Unknown { name: name.to_owned() }),
    }
}
