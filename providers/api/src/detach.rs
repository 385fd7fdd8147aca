//! The one algorithm that detaches a volume, for every provider. A provider brings its requests and a table of its
//! refusals ([`DetachApi`]); it decides nothing about when a detach may be sent.
//!
//! # Expected flow
//! A provider's [`Provider::detach`](crate::Provider::detach) calls [`detach`], which
//! 1. reads the volume ([`DetachApi::read_volume`]),
//! 2. stops without sending anything unless the volume's only holder is the instance of the request's proof, and the
//!    volume's state allows a detach,
//! 3. sends one request ([`DetachApi::send`]),
//! 4. when that is refused, reads once more what is in the way, and answers with that outcome where it is definite.
//!
//! [`force_detach`] reads the instance before step 1 ([`ForceDetachApi::read_instance`]) and stops unless the instance
//! is off or gone at that moment too.
//!
//! # Guarantees
//! - A detach is sent only on a [`FenceProof`](reattach_core::proof::FenceProof), for that proof's volume and holder:
//!   [`DetachApi::send`] takes a [`DetachOrder`], which only this module makes, from a request, which needs a proof.
//! - At most one request is sent: a [`DetachOrder`] cannot be copied, `send` consumes it, and each call makes one.
//! - All steps together end by the timeout of the request.
//! - A definite outcome follows only from an acceptance, from a read, or from a refusal that had no effect. An error
//!   that leaves the effect unknown is returned as it is, whatever a later read would show.
//!
//! # Assumptions
//! - [`DetachApi::send`] sends at most one request for its order and does not retry, and neither does its transport.
//! - New users of the volume are kept away until the detach is read back. A provider whose request names no holder
//!   detaches from the instance that has the volume when the request arrives.
//!
//! # Caveats
//! The holder may change between the read and the request. A provider that names the holder in its request
//! ([`Capabilities::detach_compares_holder`](crate::Capabilities)) is refused then.
//!
//! # Errors
//! [`ProviderError::Unknown`] only after the request was handed to [`DetachApi::send`]. A failure to find out what is
//! behind a refusal is no error of its own: the refusal is returned.

use crate::{
    Deadline, DetachOutcome, DetachRequest, ForceDetachRequest, ProviderError,
    error::EffectKnowledge,
};
use reattach_core::{
    cloud::{CloudInstance, CloudVolume, InstanceState, VolumeState},
    ids::{InstanceId, VolumeId},
};
use std::future::{Future, ready};

/// The requests of a detach at one cloud.
pub trait DetachApi: Sync {
    /// Reads the volume. Called right before the one request, and again after a [`Refusal::StateChanged`].
    ///
    /// # Errors
    /// As every read, never [`ProviderError::Unknown`]. [`ProviderError::NotFound`] when the credential sees no such
    /// volume.
    fn read_volume(
        &self,
        operation: &str,
        volume: &VolumeId,
    ) -> impl Future<Output = Result<CloudVolume, ProviderError>> + Send;

    /// Sends one request to detach, as the order says, and returns when the cloud accepted it.
    ///
    /// # Errors
    /// [`SendFailure`]: what is known about the effect, and what a refusal says about the volume.
    fn send(&self, order: DetachOrder<'_>) -> impl Future<Output = Result<(), SendFailure>> + Send;

    /// Returns whether the cloud's job history shows a detach of this volume under way. Called after a
    /// [`Refusal::JobInTheWay`] only. A history that cannot be read counts as no.
    fn detach_is_pending(&self, _volume: &VolumeId) -> impl Future<Output = bool> + Send {
        ready(false)
    }
}

/// What a forced detach needs besides.
pub trait ForceDetachApi: DetachApi {
    /// Reads the instance. `None`: the credential sees no such instance.
    ///
    /// # Errors
    /// As every read, never [`ProviderError::Unknown`].
    fn read_instance(
        &self,
        operation: &str,
        instance: &InstanceId,
    ) -> impl Future<Output = Result<Option<CloudInstance>, ProviderError>> + Send;
}

/// The permission to send one request. Only [`detach`] and [`force_detach`] make one, after they read the volume.
#[derive(Debug)]
pub struct DetachOrder<'a>(&'a Call<'a>);

impl DetachOrder<'_> {
    /// Returns the action, for errors: "detach volume 17 from instance 42".
    pub fn operation(&self) -> &str {
        &self.0.operation
    }

    /// Returns the volume to detach.
    pub fn volume(&self) -> &VolumeId {
        self.0.request.volume()
    }

    /// Returns the instance to detach from.
    pub fn holder(&self) -> &InstanceId {
        self.0.request.holder()
    }

    /// Returns whether the detach is to be forced. Always false for a provider without [`ForceDetachApi`].
    pub fn is_forced(&self) -> bool {
        self.0.forced
    }

    /// Returns the time by which [`DetachApi::send`] must return. Its future is dropped at this time.
    pub fn deadline(&self) -> Deadline {
        self.0.deadline
    }
}

/// A request to detach that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendFailure {
    /// The failure by what is known about the effect. Returned where `refusal` leads to no definite outcome.
    pub error: ProviderError,
    /// What a refusal says about the volume.
    pub refusal: Refusal,
}

impl From<ProviderError> for SendFailure {
    fn from(error: ProviderError) -> Self {
        Self {
            error,
            refusal: Refusal::Other,
        }
    }
}

/// What a refused detach says about the volume. A provider's table of errors gives one of these for each error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing. The error is the result.
    Other,
    /// The provider has locked the volume.
    Locked {
        /// The provider's words.
        reason: String,
    },
    /// A job of the cloud's own is in the way, and the volume does not show which one: the job history is read. An
    /// earlier detach there gives [`DetachOutcome::Detaching`], anything else [`DetachOutcome::Busy`].
    JobInTheWay {
        /// The provider's words.
        detail: String,
    },
    /// The volume is not as it was read right before: it is read again.
    StateChanged {
        /// The provider's words, where the refusal also says that the volume cannot be detached now. They become
        /// [`DetachOutcome::Busy`] when the proven holder still has the volume. Without them the error is the result.
        busy: Option<String>,
    },
}

/// Detaches the volume of the request's proof from the proof's holder, as the module's documentation says.
///
/// # Errors
/// See [`ProviderError`].
pub async fn detach(
    api: &impl DetachApi,
    request: DetachRequest,
) -> Result<DetachOutcome, ProviderError> {
    let call = Call::new(&request, false);
    call.run(api, call.read_volume(api)).await
}

/// Detaches by force, after a look at the instance, which must be off or gone at this moment as well.
///
/// # Errors
/// As [`detach`], and [`ProviderError::NotApplied`] when the instance is neither off nor gone.
pub async fn force_detach(
    api: &impl ForceDetachApi,
    request: ForceDetachRequest,
) -> Result<DetachOutcome, ProviderError> {
    let call = Call::new(request.order(), true);
    let reading = async {
        call.require_off_or_gone(api).await?;
        call.read_volume(api).await
    };
    call.run(api, reading).await
}

/// One call of the algorithm.
#[derive(Debug)]
struct Call<'a> {
    request: &'a DetachRequest,
    forced: bool,
    operation: String,
    deadline: Deadline,
}

impl<'a> Call<'a> {
    fn new(request: &'a DetachRequest, forced: bool) -> Self {
        let (volume, holder) = (request.volume(), request.holder());
        let by_force = if forced { " by force" } else { "" };
        let operation = format!("detach volume {volume} from instance {holder}{by_force}");
        Self {
            request,
            forced,
            operation,
            deadline: Deadline::after(request.timeout()),
        }
    }

    async fn run(
        &self,
        api: &impl DetachApi,
        reading: impl Future<Output = Result<CloudVolume, ProviderError>>,
    ) -> Result<DetachOutcome, ProviderError> {
        let volume = self
            .deadline
            .read_first(&self.operation, "the volume", reading)
            .await?;
        if let Some(outcome) = self.obstacle(&volume)? {
            return Ok(outcome);
        }
        self.deadline
            .check_time_to_send(&self.operation, "the volume")?;
        let failure = match self.deadline.bound(api.send(DetachOrder(self))).await {
            Some(Ok(())) => return Ok(DetachOutcome::Accepted),
            Some(Err(failure)) => failure,
            None => {
                let (operation, reason) = (
                    self.operation.clone(),
                    "no answer in the time allowed".to_owned(),
                );
                return Err(ProviderError::Unknown { operation, reason });
            }
        };
        if failure.error.effect() == EffectKnowledge::Unknown {
            return Err(failure.error);
        }
        let outcome = self
            .deadline
            .bound(self.outcome_behind(api, failure.refusal))
            .await
            .flatten();
        outcome.ok_or(failure.error)
    }

    /// Reads the volume, and refuses an answer about another one.
    async fn read_volume(&self, api: &impl DetachApi) -> Result<CloudVolume, ProviderError> {
        let volume = api
            .read_volume(&self.operation, self.request.volume())
            .await?;
        if volume.id == *self.request.volume() {
            return Ok(volume);
        }
        Err(ProviderError::OtherObject {
            operation: self.operation.clone(),
            asked: format!("volume {}", self.request.volume()),
            answered: format!("volume {}", volume.id),
        })
    }

    /// An instance that the cloud no longer shows passes: whether it is gone is what the request's proof shows.
    async fn require_off_or_gone(&self, api: &impl ForceDetachApi) -> Result<(), ProviderError> {
        let holder = self.request.holder();
        match api
            .read_instance(&self.operation, holder)
            .await?
            .map(|instance| instance.state)
        {
            None | Some(InstanceState::Off | InstanceState::Gone) => Ok(()),
            Some(state) => Err(self.not_applied(format!(
                "instance {holder} is {state:?}, neither off nor gone"
            ))),
        }
    }

    /// Returns what makes a detach needless or impossible, if anything does.
    fn obstacle(&self, volume: &CloudVolume) -> Result<Option<DetachOutcome>, ProviderError> {
        match &volume.holders[..] {
            [holder] if holder == self.request.holder() => {}
            [] => return Ok(Some(DetachOutcome::AlreadyDetached)),
            [other] => return Ok(Some(DetachOutcome::AttachedElsewhere(other.clone()))),
            many => {
                let names: Vec<_> = many.iter().map(ToString::to_string).collect();
                let why = format!(
                    "{} instances have the volume: {}",
                    many.len(),
                    names.join(", ")
                );
                return Err(self.not_applied(why));
            }
        }
        match &volume.state {
            VolumeState::Active => Ok(None),
            VolumeState::Busy { doing } => Ok(Some(DetachOutcome::Busy {
                detail: format!("the volume's status is {doing}"),
            })),
            VolumeState::Locked { reason } => Ok(Some(DetachOutcome::Locked {
                reason: reason.clone(),
            })),
            // A detach that waits for a guest is what force is for.
            VolumeState::Detaching if self.forced => Ok(None),
            VolumeState::Detaching => Ok(Some(DetachOutcome::Detaching)),
            VolumeState::Other(word) => {
                Err(self.not_applied(format!("the volume's status {word:?} is not known")))
            }
        }
    }

    /// Returns the definite outcome behind a refusal, if there is one.
    async fn outcome_behind(
        &self,
        api: &impl DetachApi,
        refusal: Refusal,
    ) -> Option<DetachOutcome> {
        match refusal {
            Refusal::Other => None,
            Refusal::Locked { reason } => Some(DetachOutcome::Locked { reason }),
            Refusal::JobInTheWay { detail } => {
                Some(match api.detach_is_pending(self.request.volume()).await {
                    true => DetachOutcome::Detaching,
                    false => DetachOutcome::Busy { detail },
                })
            }
            Refusal::StateChanged { busy } => {
                let volume = self.read_volume(api).await.ok()?;
                match &volume.holders[..] {
                    [] => Some(DetachOutcome::AlreadyDetached),
                    [other] if other != self.request.holder() => {
                        Some(DetachOutcome::AttachedElsewhere(other.clone()))
                    }
                    [_] if volume.state == VolumeState::Detaching => Some(DetachOutcome::Detaching),
                    [_] => busy.map(|detail| DetachOutcome::Busy { detail }),
                    _ => None,
                }
            }
        }
    }

    fn not_applied(&self, reason: String) -> ProviderError {
        ProviderError::not_applied(&self.operation, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::proof;
    use reattach_core::cloud::{DeviceIdentity, OwnerTags};
    use std::{sync::Mutex, time::Duration};

    const VOLUME: &str = "17";
    const HOLDER: &str = "42";
    const OTHER: &str = "43";
    const TIMEOUT: Duration = Duration::from_secs(8);

    fn volume(holders: &[&str], state: VolumeState) -> CloudVolume {
        CloudVolume {
            id: VOLUME.into(),
            label: "pvc1".into(),
            region: "a region".into(),
            size_gib: 10,
            holders: holders.iter().map(|id| (*id).into()).collect(),
            state,
            identity: DeviceIdentity {
                serial: "pvc1".into(),
            },
            owner: OwnerTags::default(),
        }
    }

    fn held() -> CloudVolume {
        volume(&[HOLDER], VolumeState::Active)
    }

    fn refused(refusal: Refusal) -> SendFailure {
        SendFailure {
            error: ProviderError::not_applied("detach it", "refused"),
            refusal,
        }
    }

    /// A cloud whose answers are given in advance, and which notes its calls.
    struct Scripted {
        first: CloudVolume,
        /// What every later read shows.
        later: CloudVolume,
        answer: Result<(), SendFailure>,
        instance: Option<InstanceState>,
        pending: bool,
        read_takes: Duration,
        send_takes: Duration,
        calls: Mutex<Vec<String>>,
    }

    impl Default for Scripted {
        fn default() -> Self {
            Self {
                first: held(),
                later: held(),
                answer: Ok(()),
                instance: Some(InstanceState::Off),
                pending: false,
                read_takes: Duration::ZERO,
                send_takes: Duration::ZERO,
                calls: Mutex::default(),
            }
        }
    }

    impl Scripted {
        fn note(&self, call: &str) -> usize {
            let mut calls = self.calls.lock().unwrap();
            calls.push(call.to_owned());
            calls.iter().filter(|c| *c == call).count()
        }

        fn calls(&self) -> String {
            self.calls.lock().unwrap().join(", ")
        }

        async fn detach(&self) -> Result<DetachOutcome, ProviderError> {
            let proof = proof::handshake(
                &VOLUME.into(),
                &HOLDER.into(),
                "2021-07-11T01:13:00Z".parse().unwrap(),
            );
            detach(self, DetachRequest::plain(proof, TIMEOUT)).await
        }

        async fn force(&self) -> Result<DetachOutcome, ProviderError> {
            let proof = proof::off(
                &VOLUME.into(),
                &HOLDER.into(),
                "2021-07-11T01:13:00Z".parse().unwrap(),
            );
            force_detach(self, ForceDetachRequest::new(proof, TIMEOUT).unwrap()).await
        }
    }

    impl DetachApi for Scripted {
        async fn read_volume(&self, _: &str, _: &VolumeId) -> Result<CloudVolume, ProviderError> {
            let times = self.note("read");
            tokio::time::sleep(self.read_takes).await;
            Ok(if times == 1 {
                self.first.clone()
            } else {
                self.later.clone()
            })
        }

        async fn send(&self, order: DetachOrder<'_>) -> Result<(), SendFailure> {
            assert_eq!(
                (order.volume().as_str(), order.holder().as_str()),
                (VOLUME, HOLDER)
            );
            self.note(if order.is_forced() {
                "send forced"
            } else {
                "send"
            });
            tokio::time::sleep(self.send_takes).await;
            self.answer.clone()
        }

        async fn detach_is_pending(&self, _: &VolumeId) -> bool {
            self.note("jobs");
            self.pending
        }
    }

    impl ForceDetachApi for Scripted {
        async fn read_instance(
            &self,
            _: &str,
            instance: &InstanceId,
        ) -> Result<Option<CloudInstance>, ProviderError> {
            self.note("read instance");
            Ok(self.instance.clone().map(|state| CloudInstance {
                id: instance.clone(),
                label: "node-1".into(),
                state,
                auto_restart: false,
                owner: OwnerTags::default(),
            }))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_detach_is_sent_only_when_the_proven_holder_is_alone() {
        let busy = VolumeState::Busy {
            doing: "resizing".to_owned(),
        };
        let detail = "the volume's status is resizing".to_owned();
        let locked = VolumeState::Locked {
            reason: "migration".to_owned(),
        };
        let table = [
            (held(), Ok(DetachOutcome::Accepted)),
            (
                volume(&[], VolumeState::Active),
                Ok(DetachOutcome::AlreadyDetached),
            ),
            (
                volume(&[OTHER], VolumeState::Active),
                Ok(DetachOutcome::AttachedElsewhere(OTHER.into())),
            ),
            (
                volume(&[HOLDER, OTHER], VolumeState::Active),
                Err("2 instances have the volume: 42, 43"),
            ),
            (volume(&[HOLDER], busy), Ok(DetachOutcome::Busy { detail })),
            (
                volume(&[HOLDER], locked),
                Ok(DetachOutcome::Locked {
                    reason: "migration".to_owned(),
                }),
            ),
            (
                volume(&[HOLDER], VolumeState::Detaching),
                Ok(DetachOutcome::Detaching),
            ),
            (
                volume(&[HOLDER], VolumeState::Other("shiny".to_owned())),
                Err("status \"shiny\" is not known"),
            ),
            (
                CloudVolume {
                    id: "18".into(),
                    ..held()
                },
                Err("the answer is about volume 18, not about volume 17"),
            ),
        ];
        for (first, expected) in table {
            let api = Scripted {
                first,
                ..Scripted::default()
            };
            let outcome = api.detach().await;
            match (&outcome, &expected) {
                (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                _ => panic!("{outcome:?} instead of {expected:?}"),
            }
            let accepted = outcome == Ok(DetachOutcome::Accepted);
            assert_eq!(api.calls(), if accepted { "read, send" } else { "read" });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_explained_by_one_read_and_no_resend() {
        let said = || "busy, it said".to_owned();
        let busy = || Ok(DetachOutcome::Busy { detail: said() });
        let error = || Err(refused(Refusal::Other).error);
        let changed = |busy: Option<String>| Refusal::StateChanged { busy };
        let (again, jobs) = ("read, send, read", "read, send, jobs");
        let held_so = |state| volume(&[HOLDER], state);
        let table = [
            (Refusal::Other, held(), false, error(), "read, send"),
            (
                Refusal::Locked { reason: said() },
                held(),
                false,
                Ok(DetachOutcome::Locked { reason: said() }),
                "read, send",
            ),
            (
                Refusal::JobInTheWay { detail: said() },
                held(),
                false,
                busy(),
                jobs,
            ),
            (
                Refusal::JobInTheWay { detail: said() },
                held(),
                true,
                Ok(DetachOutcome::Detaching),
                jobs,
            ),
            (changed(None), held(), false, error(), again),
            (changed(Some(said())), held(), false, busy(), again),
            (
                changed(None),
                volume(&[], VolumeState::Active),
                false,
                Ok(DetachOutcome::AlreadyDetached),
                again,
            ),
            (
                changed(Some(said())),
                volume(&[OTHER], VolumeState::Active),
                false,
                Ok(DetachOutcome::AttachedElsewhere(OTHER.into())),
                again,
            ),
            (
                changed(None),
                held_so(VolumeState::Detaching),
                false,
                Ok(DetachOutcome::Detaching),
                again,
            ),
            (
                changed(Some(said())),
                volume(&[HOLDER, OTHER], VolumeState::Active),
                false,
                error(),
                again,
            ),
            (
                changed(Some(said())),
                CloudVolume {
                    id: "18".into(),
                    ..held()
                },
                false,
                error(),
                again,
            ),
        ];
        for (refusal, later, pending, expected, calls) in table {
            let api = Scripted {
                later,
                pending,
                answer: Err(refused(refusal.clone())),
                ..Scripted::default()
            };
            assert_eq!(api.detach().await, expected, "{refusal:?}");
            assert_eq!(api.calls(), calls, "{refusal:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unknown_effect_stays_unknown() {
        let unknown = ProviderError::Unknown {
            operation: "detach it".into(),
            reason: "HTTP 502".into(),
        };
        let failure = SendFailure {
            error: unknown.clone(),
            refusal: Refusal::StateChanged {
                busy: Some("busy".to_owned()),
            },
        };
        let api = Scripted {
            answer: Err(failure),
            ..Scripted::default()
        };
        assert_eq!(api.detach().await, Err(unknown));
        assert_eq!(api.calls(), "read, send", "no later read makes it definite");
    }

    #[tokio::test(start_paused = true)]
    async fn all_requests_end_by_one_deadline() {
        let seconds = Duration::from_secs;
        let table = [
            (
                seconds(9),
                seconds(0),
                "could not detach volume 17",
                "took all the time",
                "read",
                8_000,
            ),
            (
                Duration::from_millis(7_600),
                seconds(0),
                "could not detach",
                "too little time",
                "read",
                7_600,
            ),
            (
                seconds(5),
                seconds(9),
                "tried to detach",
                "no answer in the time allowed",
                "read, send",
                8_000,
            ),
        ];
        for (read_takes, send_takes, first, last, calls, took) in table {
            let api = Scripted {
                read_takes,
                send_takes,
                ..Scripted::default()
            };
            let begun = tokio::time::Instant::now();
            let error = api.detach().await.expect_err(last).to_string();
            assert!(error.starts_with(first) && error.contains(last), "{error}");
            assert_eq!(api.calls(), calls);
            assert_eq!(begun.elapsed().as_millis(), took);
        }
        // No time to look behind a refusal: the refusal is the result.
        let api = Scripted {
            read_takes: seconds(5),
            answer: Err(refused(Refusal::StateChanged { busy: None })),
            ..Scripted::default()
        };
        assert_eq!(api.detach().await, Err(refused(Refusal::Other).error));
        assert_eq!(api.calls(), "read, send, read");
    }

    #[tokio::test(start_paused = true)]
    async fn force_needs_an_instance_that_is_off_or_gone_now() {
        let on = [
            InstanceState::Running,
            InstanceState::Stopping,
            InstanceState::Unknown("odd".to_owned()),
        ];
        for state in on {
            let api = Scripted {
                instance: Some(state),
                ..Scripted::default()
            };
            let error = api.force().await.expect_err("refused").to_string();
            assert!(error.contains("neither off nor gone"), "{error}");
            assert_eq!(api.calls(), "read instance");
        }
        for instance in [None, Some(InstanceState::Off), Some(InstanceState::Gone)] {
            let first = volume(&[HOLDER], VolumeState::Detaching);
            let api = Scripted {
                instance,
                first,
                ..Scripted::default()
            };
            assert_eq!(
                api.force().await,
                Ok(DetachOutcome::Accepted),
                "also of a detach that is stuck"
            );
            assert_eq!(api.calls(), "read instance, read, send forced");
        }
    }
}
