//! [`Provider`] for Linode, with its batched reads.

use crate::{
    client::Client,
    config::{ConfigError, LinodeConfig},
    handle, history, power, preflight, scope,
    socket::http_transport,
    wire::{Instance, Numbered, Volume},
};
use futures::future::{BoxFuture, FutureExt, join_all};
use jiff::Timestamp;
use reattach_core::{
    cloud::{CloudInstance, CloudJob, CloudScope, CloudVolume, PowerFacts},
    ids::{DriverName, InstanceId, VolumeHandle, VolumeId},
};
use reattach_provider_api::{
    Capabilities, DetachOutcome, DetachRequest, EffectError, HandleError, HttpTransport, Limiter,
    Lookup, PowerOffRequest, PowerOutcome, PreflightReport, Provider, ProviderError,
    detach::detach,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Maximum number of objects that are read one by one. More are read from a list.
const SINGLE_READS: usize = 3;

/// Maximum number of objects on a page of the API.
const PAGE: u16 = 500;

/// Instances per filtered list. It keeps the filter header near 2 kB.
const INSTANCES_PER_LIST: usize = 100;

/// The provider for Linode's API. Clones share their connections.
#[derive(Clone, Debug)]
pub struct LinodeProvider {
    client: Client,
}

impl LinodeProvider {
    /// Makes a provider over this transport.
    pub fn new(transport: HttpTransport, config: LinodeConfig) -> Self {
        Self {
            client: Client::new(transport, config),
        }
    }

    /// Makes a provider over HTTP, as in production.
    ///
    /// # Errors
    /// As [`http_transport`].
    pub fn connect(config: LinodeConfig) -> Result<Self, ConfigError> {
        Ok(Self::new(http_transport(&config)?, config))
    }

    /// Reads volumes from the list, page by page, as long as this takes fewer requests than reading the rest one by one.
    ///
    /// The list is not filtered: the API description marks a volume's `label` and `tags` as filterable, but not its `id`.
    /// An object may move to another page while the list is read, so a volume that is not in the list is read again.
    async fn volumes_from_list(
        &self,
        wanted: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, Volume>, ProviderError> {
        let mut found = BTreeMap::new();
        self.client
            .get_pages(
                "list volumes",
                "/volumes",
                PAGE,
                None,
                |rows, pages_left| {
                    collect(rows, wanted, &mut found, |volume: &Volume| volume.id);
                    let rest = wanted.len() - found.len();
                    Ok(usize::try_from(pages_left).is_ok_and(|pages| pages < rest))
                },
            )
            .await?;
        Ok(found)
    }

    /// Reads instances from lists filtered by `id`, which the API description marks as filterable.
    async fn instances_from_list(
        &self,
        wanted: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, Instance>, ProviderError> {
        let mut found = BTreeMap::new();
        let all: Vec<_> = wanted.iter().copied().collect();
        for part in all.chunks(INSTANCES_PER_LIST) {
            let filter =
                json!({ "+or": part.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>() });
            self.client
                .get_pages(
                    "list instances",
                    "/linode/instances",
                    PAGE,
                    Some(&filter),
                    |rows, _| {
                        collect(rows, wanted, &mut found, |instance: &Instance| instance.id);
                        Ok(true)
                    },
                )
                .await?;
        }
        Ok(found)
    }

    async fn look_up<T: DeserializeOwned + Numbered>(
        &self,
        what: &str,
        path: &str,
        id: u64,
    ) -> Lookup<T> {
        match self
            .client
            .get_object(&format!("read {what} {id}"), path, id)
            .await
        {
            Ok(found) => Lookup::Found(found),
            Err(ProviderError::NotFound { .. }) => Lookup::NotFound,
            Err(error) => Lookup::Failed(error),
        }
    }

    /// Combines the objects of a list with single reads of all others.
    async fn complete<T: DeserializeOwned + Numbered>(
        &self,
        what: &str,
        path: &str,
        wanted: BTreeSet<u64>,
        listed: Option<Result<BTreeMap<u64, T>, ProviderError>>,
    ) -> BTreeMap<u64, Lookup<T>> {
        let listed = match listed {
            Some(Err(error)) => {
                return wanted
                    .into_iter()
                    .map(|id| (id, Lookup::Failed(error.clone())))
                    .collect();
            }
            Some(Ok(listed)) => listed,
            None => BTreeMap::new(),
        };
        let rest: Vec<_> = wanted
            .into_iter()
            .filter(|id| !listed.contains_key(id))
            .collect();
        let mut all: BTreeMap<_, _> = listed
            .into_iter()
            .map(|(id, item)| (id, Lookup::Found(item)))
            .collect();
        for some in rest.chunks(SINGLE_READS) {
            let looks = some
                .iter()
                .map(|id| self.look_up(what, path, *id).map(move |look| (*id, look)));
            all.extend(join_all(looks).await);
        }
        all
    }
}

/// Collects the wanted rows that can be parsed. Any other is read again on its own, which returns its error.
fn collect<T: DeserializeOwned>(
    rows: Vec<Value>,
    wanted: &BTreeSet<u64>,
    into: &mut BTreeMap<u64, T>,
    id: impl Fn(&T) -> u64,
) {
    for row in rows {
        if row["id"].as_u64().is_some_and(|id| wanted.contains(&id))
            && let Ok(item) = serde_json::from_value::<T>(row)
        {
            into.insert(id(&item), item);
        }
    }
}

/// Parses identifiers into the API's numbers. Any other text becomes an error.
fn numbers<I: Ord + Clone + std::fmt::Display, T>(
    ids: &[I],
    what: &str,
) -> (BTreeSet<u64>, BTreeMap<I, Lookup<T>>) {
    let mut wanted = BTreeSet::new();
    let mut failed = BTreeMap::new();
    for id in ids {
        match handle::number(&id.to_string()) {
            Some(number) => {
                wanted.insert(number);
            }
            None => {
                let operation = format!("read {what} {id}");
                let reason = format!(
                    "{:?} is not a number, as Linode's identifiers are",
                    id.to_string()
                );
                failed.insert(
                    id.clone(),
                    Lookup::Failed(ProviderError::not_applied(&operation, reason)),
                );
            }
        }
    }
    (wanted, failed)
}

fn convert<T, U>(look: Lookup<T>, into: impl FnOnce(T) -> U) -> Lookup<U> {
    match look {
        Lookup::Found(item) => Lookup::Found(into(item)),
        Lookup::NotFound => Lookup::NotFound,
        Lookup::Failed(error) => Lookup::Failed(error),
    }
}

impl Provider for LinodeProvider {
    fn name(&self) -> &'static str {
        handle::NAME
    }

    fn limiter(&self) -> Option<&Limiter> {
        Some(self.client.limiter())
    }

    fn before_effects(&self) -> Option<Arc<dyn Provider>> {
        Some(Arc::new(Self {
            client: self.client.for_effects(),
        }))
    }

    /// Linode's detach names no holder and cannot be forced. There are no dry-runs and no snapshots of volumes (a clone is a
    /// new volume that costs money).
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            can_fence: true,
            can_keep_off: true,
            ..Capabilities::default()
        }
    }

    fn resolve_volume(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<Result<VolumeId, HandleError>> {
        handle::volume(driver, handle)
    }

    fn canonical_handle(&self, volume: &CloudVolume) -> VolumeHandle {
        handle::canonical(volume)
    }

    fn volume_as_driver_reads(
        &self,
        driver: &DriverName,
        handle: &VolumeHandle,
    ) -> Option<VolumeId> {
        handle::as_driver_reads(driver, handle)
    }

    fn topology_key(&self) -> Option<&'static str> {
        Some(handle::TOPOLOGY_KEY)
    }

    fn resolve_instance(&self, provider_id: &str) -> Option<Result<InstanceId, HandleError>> {
        handle::instance(provider_id)
    }

    fn describe_volumes<'a>(
        &'a self,
        ids: &'a [VolumeId],
    ) -> BoxFuture<'a, BTreeMap<VolumeId, Lookup<CloudVolume>>> {
        async move {
            let (wanted, mut all) = numbers(ids, "volume");
            let listed = if wanted.len() > SINGLE_READS {
                Some(self.volumes_from_list(&wanted).await)
            } else {
                None
            };
            for (id, look) in self
                .complete::<Volume>("volume", "/volumes", wanted, listed)
                .await
            {
                all.insert(
                    VolumeId::new(id.to_string()),
                    convert(look, Volume::into_cloud),
                );
            }
            all
        }
        .boxed()
    }

    fn describe_instances<'a>(
        &'a self,
        ids: &'a [InstanceId],
    ) -> BoxFuture<'a, BTreeMap<InstanceId, Lookup<CloudInstance>>> {
        async move {
            let (wanted, mut all) = numbers(ids, "instance");
            let listed = if wanted.len() > SINGLE_READS {
                Some(self.instances_from_list(&wanted).await)
            } else {
                None
            };
            let looks = self
                .complete::<Instance>("instance", "/linode/instances", wanted, listed)
                .await;
            for (id, look) in looks {
                all.insert(
                    InstanceId::new(id.to_string()),
                    convert(look, Instance::into_cloud),
                );
            }
            all
        }
        .boxed()
    }

    fn jobs<'a>(
        &'a self,
        volume: &'a VolumeId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<Vec<CloudJob>, ProviderError>> {
        history::volume_jobs(&self.client, volume, since).boxed()
    }

    fn detach(
        &self,
        request: DetachRequest,
    ) -> BoxFuture<'_, Result<DetachOutcome, ProviderError>> {
        async move { detach(&self.client.for_effects(), request).await }.boxed()
    }

    fn detach_command(&self, volume: &VolumeId, _holder: &InstanceId) -> String {
        // The detach of Linode's CLI takes no instance.
        format!("linode-cli volumes detach {volume}")
    }

    fn power_command(&self, instance: &InstanceId, on: bool) -> String {
        format!(
            "linode-cli linodes {} {instance}",
            if on { "boot" } else { "shutdown" }
        )
    }

    fn restart_command(&self, instance: &InstanceId, on: bool) -> String {
        format!("linode-cli linodes update {instance} --watchdog_enabled {on}")
    }

    fn preflight(&self) -> BoxFuture<'_, PreflightReport> {
        preflight::run(&self.client).boxed()
    }

    fn power_off(
        &self,
        request: PowerOffRequest,
    ) -> BoxFuture<'_, Result<PowerOutcome, EffectError>> {
        async move { power::off(&self.client.for_effects(), &request).await }.boxed()
    }

    fn power_on<'a>(
        &'a self,
        instance: &'a InstanceId,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        async move { power::on(&self.client.for_effects(), instance, timeout).await }.boxed()
    }

    fn set_restart<'a>(
        &'a self,
        instance: &'a InstanceId,
        on: bool,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<PowerOutcome, EffectError>> {
        async move { power::watchdog(&self.client.for_effects(), instance, on, timeout).await }
            .boxed()
    }

    fn scope(&self) -> BoxFuture<'_, Result<CloudScope, EffectError>> {
        async move { Ok(scope::read(&self.client).await?) }.boxed()
    }

    fn power_facts<'a>(
        &'a self,
        instance: &'a InstanceId,
        since: Timestamp,
    ) -> BoxFuture<'a, Result<PowerFacts, EffectError>> {
        async move { Ok(history::power(&self.client, instance, since).await?) }.boxed()
    }
}
