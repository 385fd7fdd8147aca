//! A cloud of a few maps: enough to test the cluster's own behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{CloudApi, CloudApiError, CloudVolume, GuestDevice, Hardware, Power};
use crate::kapi::lock;
use crate::names::label_of;

/// One call that changed something, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudCall {
    /// Time since the cloud was made.
    pub at: Duration,
    /// `attach` or `detach`.
    pub operation: &'static str,
    /// The volume.
    pub handle: String,
    /// The instance (attach only).
    pub instance: Option<String>,
    /// Whether the cloud accepted it.
    pub accepted: bool,
}

#[derive(Debug, Default)]
struct Volume {
    size: u64,
    holder: Option<String>,
    attached_at: Option<Instant>,
    detached_at: Option<Instant>,
}

#[derive(Debug)]
struct State {
    start: Instant,
    job: Duration,
    instances: BTreeSet<String>,
    volumes: BTreeMap<String, Volume>,
    /// What guests have: (instance, handle).
    devices: BTreeSet<(String, String)>,
    detach_refusal: Option<CloudApiError>,
    refuse_unattached: bool,
    calls: Vec<CloudCall>,
}

/// A cloud in memory: attach and detach take a fixed time, and what guests see is kept apart from what the API says.
///
/// Clones share one state.
#[derive(Debug, Clone)]
pub struct TestCloud {
    state: Arc<Mutex<State>>,
}

impl TestCloud {
    /// An empty cloud; each attach and detach job takes `job` (measured recipes: 2 s).
    #[must_use]
    pub fn new(job: Duration) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                start: Instant::now(),
                job,
                instances: BTreeSet::new(),
                volumes: BTreeMap::new(),
                devices: BTreeSet::new(),
                detach_refusal: None,
                refuse_unattached: false,
                calls: Vec::new(),
            })),
        }
    }

    /// Adds an instance.
    pub fn add_instance(&self, instance: &str) {
        lock(&self.state).instances.insert(instance.to_owned());
    }

    /// Adds a detached volume of `size` bytes.
    pub fn add_volume(&self, handle: &str, size: u64) {
        lock(&self.state).volumes.insert(
            handle.to_owned(),
            Volume {
                size,
                ..Volume::default()
            },
        );
    }

    /// The guest loses its device while the API goes on saying "attached": class B.
    pub fn make_phantom(&self, handle: &str) {
        let mut s = self.settled();
        s.devices.retain(|(_, h)| h != handle);
    }

    /// The attachment is gone, in the API and in the guest: class C.
    pub fn make_lost(&self, handle: &str) {
        let mut s = self.settled();
        s.devices.retain(|(_, h)| h != handle);
        if let Some(v) = s.volumes.get_mut(handle) {
            (v.holder, v.attached_at, v.detached_at) = (None, None, None);
        }
    }

    /// While set, every detach is refused with this error.
    pub fn refuse_detach(&self, error: Option<CloudApiError>) {
        lock(&self.state).detach_refusal = error;
    }

    /// How a detach of a volume that is not attached is answered: refused, or (the default) accepted. What Linode
    /// does is not known.
    pub fn refuse_unattached(&self, refuse: bool) {
        lock(&self.state).refuse_unattached = refuse;
    }

    /// The instance that the API names as holder.
    #[must_use]
    pub fn holder(&self, handle: &str) -> Option<String> {
        self.settled()
            .volumes
            .get(handle)
            .and_then(|v| v.holder.clone())
    }

    /// Attach and detach calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<CloudCall> {
        lock(&self.state).calls.clone()
    }

    /// The state with all jobs done whose time has come.
    fn settled(&self) -> std::sync::MutexGuard<'_, State> {
        let mut guard = lock(&self.state);
        let now = Instant::now();
        let s = &mut *guard;
        for (handle, v) in &mut s.volumes {
            if v.attached_at.is_some_and(|at| at <= now) {
                v.attached_at = None;
                if let Some(holder) = &v.holder {
                    s.devices.insert((holder.clone(), handle.clone()));
                }
            }
            if v.detached_at.is_some_and(|at| at <= now) {
                v.detached_at = None;
                v.holder = None;
                s.devices.retain(|(_, h)| h != handle);
            }
        }
        guard
    }

    fn describe(handle: &str, v: &Volume) -> CloudVolume {
        let ready = v.holder.is_some() && v.attached_at.is_none() && v.detached_at.is_none();
        CloudVolume {
            handle: handle.to_owned(),
            holder: v.holder.clone(),
            ready,
        }
    }

    fn begin(
        &self,
        operation: &'static str,
        handle: &str,
        instance: Option<&str>,
    ) -> Result<(), CloudApiError> {
        let mut guard = self.settled();
        let s = &mut *guard;
        let (now, done) = (Instant::now(), Instant::now() + s.job);
        let busy = || CloudApiError::Refused {
            status: 400,
            reason: "Linode busy.".into(),
        };
        let refusal = s.detach_refusal.clone();
        let result = match (s.volumes.get_mut(handle), instance) {
            (None, _) => Err(CloudApiError::NotFound),
            (Some(v), _) if v.attached_at.is_some() || v.detached_at.is_some() => Err(busy()),
            (Some(v), Some(instance)) => match &v.holder {
                Some(_) => Err(CloudApiError::Refused {
                    status: 400,
                    reason: "Volume is already attached.".into(),
                }),
                None => {
                    v.holder = Some(instance.to_owned());
                    v.attached_at = Some(done);
                    Ok(())
                }
            },
            (Some(v), None) => match (refusal, &v.holder) {
                (Some(e), _) => Err(e),
                (None, None) if !s.refuse_unattached => Ok(()),
                (None, None) => Err(CloudApiError::Refused {
                    status: 400,
                    reason: "Volume is not attached.".into(),
                }),
                (None, Some(_)) => {
                    v.detached_at = Some(done);
                    Ok(())
                }
            },
        };
        let at = now.duration_since(s.start);
        let (handle, instance) = (handle.to_owned(), instance.map(str::to_owned));
        s.calls.push(CloudCall {
            at,
            operation,
            handle,
            instance,
            accepted: result.is_ok(),
        });
        result
    }
}

impl CloudApi for TestCloud {
    fn volume<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<CloudVolume, CloudApiError>> {
        let s = self.settled();
        let found = s
            .volumes
            .get(handle)
            .map(|v| Self::describe(handle, v))
            .ok_or(CloudApiError::NotFound);
        Box::pin(std::future::ready(found))
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<CloudVolume>, CloudApiError>> {
        let all = self
            .settled()
            .volumes
            .iter()
            .map(|(h, v)| Self::describe(h, v))
            .collect();
        Box::pin(std::future::ready(Ok(all)))
    }

    fn instance_exists<'a>(
        &'a self,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<bool, CloudApiError>> {
        let known = lock(&self.state).instances.contains(instance);
        Box::pin(std::future::ready(Ok(known)))
    }

    fn attach<'a>(
        &'a self,
        handle: &'a str,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<(), CloudApiError>> {
        Box::pin(std::future::ready(self.begin(
            "attach",
            handle,
            Some(instance),
        )))
    }

    fn detach<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), CloudApiError>> {
        Box::pin(std::future::ready(self.begin("detach", handle, None)))
    }
}

impl Hardware for TestCloud {
    fn guest_devices<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Vec<GuestDevice>> {
        let s = self.settled();
        let devices = s
            .devices
            .iter()
            .filter(|(i, _)| i == instance)
            .map(|(_, handle)| GuestDevice {
                handle: handle.clone(),
                label: label_of(handle).to_owned(),
                size: s.volumes.get(handle).map_or(0, |v| v.size),
            });
        Box::pin(std::future::ready(devices.collect()))
    }

    /// An unclean power loss: every attachment of the instance becomes a phantom.
    fn power<'a>(&'a self, instance: &'a str, power: Power) -> BoxFuture<'a, ()> {
        if power != Power::On {
            self.settled().devices.retain(|(i, _)| i != instance);
        }
        Box::pin(std::future::ready(()))
    }
}
