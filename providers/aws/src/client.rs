//! Sends requests: reads with a bounded number of retries, mutations once. The SDK's own retries are off.

use crate::{
    classify::{Call, Failure, Kind},
    config::{AwsConfig, Source},
    connector::{Connector, Sent},
    limits,
};
use aws_config::{AppName, BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client as Ec2,
    config::{Builder, StalledStreamProtectionConfig},
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use reattach_provider_api::{
    Deadline, HttpTransport, Limiter, ProviderError, Purpose, limiter::limited, masking,
};
use std::{error::Error, fmt, future::Future, sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// Waits before the second and third attempt of a read.
const READ_WAITS: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(400)];

/// Maximum number of pages of one list.
pub(crate) const MAX_PAGES: usize = 200;

/// A result of the SDK.
pub(crate) type Answer<T, E> = Result<T, SdkError<E, HttpResponse>>;

/// A client of EC2 over a transport. Clones share the transport.
#[derive(Clone)]
pub(crate) struct Client {
    inner: Arc<Inner>,
    purpose: Purpose,
}

struct Inner {
    transport: HttpTransport,
    limiter: Arc<Limiter>,
    config: AwsConfig,
    ec2: OnceCell<Ec2>,
    ec2_for_effects: OnceCell<Ec2>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(transport: HttpTransport, config: AwsConfig) -> Self {
        let limiter = Arc::new(Limiter::new(limits::PUBLISHED));
        Self {
            inner: Arc::new(Inner {
                transport: limited(masking(transport), limiter.clone(), limits::READING),
                limiter,
                config,
                ec2: OnceCell::new(),
                ec2_for_effects: OnceCell::new(),
            }),
            purpose: Purpose::Look,
        }
    }

    /// Returns this client for the requests of an effect: none of them waits behind looks.
    pub(crate) fn for_effects(&self) -> Self {
        Self {
            purpose: Purpose::Effect,
            ..self.clone()
        }
    }

    pub(crate) fn limiter(&self) -> &Limiter {
        &self.inner.limiter
    }

    pub(crate) fn config(&self) -> &AwsConfig {
        &self.inner.config
    }

    /// Returns the SDK's client. The first call makes it and reads its settings from files and the environment.
    async fn ec2(&self) -> &Ec2 {
        let Inner {
            transport,
            ec2,
            ec2_for_effects,
            ..
        } = &*self.inner;
        let for_looks = ec2.get_or_init(|| self.set_up()).await;
        match self.purpose {
            Purpose::Look => for_looks,
            // It shares the credentials that were read.
            Purpose::Effect => {
                let make = async || {
                    let connector = Connector::reading(transport.clone(), Purpose::Effect);
                    let settings = for_looks.config().to_builder().http_client(connector);
                    Ec2::from_conf(settings.build())
                };
                ec2_for_effects.get_or_init(make).await
            }
        }
    }

    async fn set_up(&self) -> Ec2 {
        let Inner {
            transport, config, ..
        } = &*self.inner;
        let region = Region::new(config.region.clone());
        let mut builder = match &config.source {
            Source::Chain => {
                let chain = aws_config::defaults(BehaviorVersion::latest()).region(region);
                Builder::from(&chain.load().await)
            }
            Source::Fixed(credentials) => Builder::new()
                .behavior_version(BehaviorVersion::latest())
                .region(region)
                .credentials_provider(credentials.clone()),
        };
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        // An app name must not contain a slash.
        builder.set_app_name(AppName::new(config.user_agent.replace('/', "-")).ok());
        Ec2::from_conf(
            builder
                .http_client(Connector::reading(transport.clone(), Purpose::Look))
                .retry_config(RetryConfig::disabled())
                // The functions below set a timeout around each call.
                .timeout_config(TimeoutConfig::disabled())
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                .build(),
        )
    }

    /// Sends a read. Retries passing failures (no answer, 408, 5xx), at most twice. Does not retry a throttled read: the
    /// caller decides how long to wait.
    pub(crate) async fn read<T, E, F>(
        &self,
        call: Call<'_>,
        send: impl Fn(Ec2) -> F,
    ) -> Result<T, ProviderError>
    where
        F: Future<Output = Answer<T, E>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let mut waits = READ_WAITS.iter();
        loop {
            let failure = match self.read_once(call, &send).await {
                Ok(found) => return Ok(found),
                Err(failure) => failure,
            };
            let Some(wait) = waits.next().filter(|_| failure.transient) else {
                return Err(failure.error);
            };
            tracing::debug!(error = %failure.error, wait_ms = wait.as_millis(), "read failed, retrying");
            tokio::time::sleep(*wait).await;
        }
    }

    async fn read_once<T, E, F>(
        &self,
        call: Call<'_>,
        send: impl Fn(Ec2) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Answer<T, E>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let work = async { send(self.ec2().await.clone()).await };
        match tokio::time::timeout(self.inner.config.read_timeout, work).await {
            Ok(answer) => answer.map_err(|error| call.failed(Kind::Read, error)),
            Err(_) => Err(call.timed_out(Kind::Read)),
        }
    }

    /// Sends one mutation, and never repeats it. `send` gets settings for this call only, for
    /// `.customize().config_override(…)`.
    pub(crate) async fn mutate<T, E, F>(
        &self,
        call: Call<'_>,
        deadline: Deadline,
        send: impl FnOnce(Ec2, Builder) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Answer<T, E>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        if !deadline.leaves_time_to_send() {
            let error = call.not_applied("too little time was left to send the request");
            return Err(Failure {
                error,
                code: None,
                message: None,
                transient: false,
            });
        }
        let (settings, sent) = self.once();
        let work = async { send(self.ec2().await.clone(), settings).await };
        let answer = deadline.bound(work).await;
        let kind = Kind::Mutation {
            sent: sent.is_sent(),
        };
        match answer {
            Some(answer) => answer.map_err(|error| call.failed(kind, error)),
            None => Err(call.timed_out(kind)),
        }
    }

    /// Sends a dry-run (`DryRun`), which has no effect.
    pub(crate) async fn dry_run<T, E, F>(
        &self,
        call: Call<'_>,
        send: impl FnOnce(Ec2, Builder) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Answer<T, E>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (settings, _) = self.once();
        let work = async { send(self.ec2().await.clone(), settings).await };
        match tokio::time::timeout(self.inner.config.read_timeout, work).await {
            Ok(answer) => answer.map_err(|error| call.failed(Kind::Read, error)),
            Err(_) => Err(call.timed_out(Kind::Read)),
        }
    }

    /// Returns the settings of a call that is sent at most once.
    fn once(&self) -> (Builder, Sent) {
        let (connector, sent) = Connector::once(self.inner.transport.clone());
        (
            Builder::new()
                .http_client(connector)
                .retry_config(RetryConfig::disabled()),
            sent,
        )
    }
}
