//! Settings. Their names are those of all AWS tools: `AWS_REGION`, `AWS_ENDPOINT_URL` and the usual sources of
//! credentials.

use aws_sdk_ec2::config::Credentials;
use http::Uri;
use reattach_core::product::Product;
use reattach_provider_api::socket::{loopback_of, redacted};
use std::{fmt, time::Duration};

/// Timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for one read, including the time to get credentials.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Name in the requests when the program does not set its own.
const USER_AGENT: &str = concat!("reattach/", env!("CARGO_PKG_VERSION"));

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No region is set.
    #[error(
        "AWS_REGION is not set: set it to the region of the cluster's volumes, such as eu-central-1"
    )]
    NoRegion,
    /// The region cannot be part of a host name.
    #[error("AWS_REGION {0:?} cannot be used: expected a region such as eu-central-1")]
    BadRegion(String),
    /// The endpoint is not a usable URL of an API.
    #[error("{variable} {url:?} cannot be used: {why}")]
    BadUrl {
        /// Name of the variable.
        variable: &'static str,
        /// Value of the variable, without credentials.
        url: String,
        /// Defect of the value.
        why: &'static str,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
}

/// Source of the credentials.
#[derive(Clone)]
pub(crate) enum Source {
    /// The SDK's default chain: environment, profile, web identity (IRSA), container (EKS Pod Identity), instance.
    Chain,
    /// Credentials given by the program.
    Fixed(Credentials),
}

/// Settings of the client of EC2.
#[derive(Clone)]
pub struct AwsConfig {
    pub(crate) region: String,
    /// Endpoint. `None`: the SDK uses the one of its variables or profile, otherwise that of the region.
    pub(crate) endpoint: Option<String>,
    pub(crate) loopback: bool,
    pub(crate) source: Source,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) user_agent: &'static str,
}

impl fmt::Debug for AwsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match self.source {
            Source::Chain => "default chain",
            Source::Fixed(_) => "given (redacted)",
        };
        f.debug_struct("AwsConfig")
            .field("region", &self.region)
            .field("endpoint", &self.endpoint)
            .field("credentials", &source)
            .finish_non_exhaustive()
    }
}

impl AwsConfig {
    /// Makes settings from environment variables: `AWS_REGION` (or `AWS_DEFAULT_REGION`), and `AWS_ENDPOINT_URL_EC2` or
    /// `AWS_ENDPOINT_URL` if set. The first call reads credentials from the SDK's default chain.
    ///
    /// # Errors
    /// [`ConfigError::NoRegion`] and [`ConfigError::BadRegion`]. [`ConfigError::BadUrl`] when the endpoint is no absolute URL,
    /// has credentials, or is plain HTTP to another machine, which would send session tokens unencrypted.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |name: &str| {
            var(name)
                .map(|v| v.trim().to_owned())
                .filter(|v| !v.is_empty())
        };
        let region = set("AWS_REGION")
            .or_else(|| set("AWS_DEFAULT_REGION"))
            .ok_or(ConfigError::NoRegion)?;
        let endpoint = ["AWS_ENDPOINT_URL_EC2", "AWS_ENDPOINT_URL"]
            .into_iter()
            .find_map(|name| set(name).map(|url| (name, url)));
        let loopback = match &endpoint {
            Some((name, url)) => check_url(name, url)?,
            None => false,
        };
        Self::new(region, None, loopback, Source::Chain)
    }

    /// Makes settings that do not use the environment, for tests and drills.
    ///
    /// # Errors
    /// As [`AwsConfig::from_vars`].
    pub fn fixed(
        region: &str,
        endpoint: &str,
        access_key: &str,
        secret_key: &str,
    ) -> Result<Self, ConfigError> {
        let loopback = check_url("endpoint", endpoint)?;
        let credentials = Credentials::new(access_key, secret_key, None, None, "fixed");
        Self::new(
            region.to_owned(),
            Some(endpoint.to_owned()),
            loopback,
            Source::Fixed(credentials),
        )
    }

    fn new(
        region: String,
        endpoint: Option<String>,
        loopback: bool,
        source: Source,
    ) -> Result<Self, ConfigError> {
        // The region becomes part of a host name.
        if !region
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(ConfigError::BadRegion(region));
        }
        let (connect_timeout, read_timeout) = (CONNECT_TIMEOUT, READ_TIMEOUT);
        Ok(Self {
            region,
            endpoint,
            loopback,
            source,
            connect_timeout,
            read_timeout,
            user_agent: USER_AGENT,
        })
    }

    /// Sets the program whose name and version the requests contain.
    pub fn for_product(mut self, product: Product) -> Self {
        self.user_agent = product.user_agent();
        self
    }

    /// Sets the timeout for one read.
    pub fn with_read_timeout(mut self, timeout: Duration) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Returns the region.
    pub fn region(&self) -> &str {
        &self.region
    }
}

/// Returns whether the URL's host is this machine. The error: the URL must not be used.
fn check_url(variable: &'static str, url: &str) -> Result<bool, ConfigError> {
    let bad = |why| ConfigError::BadUrl {
        variable,
        url: redacted(url),
        why,
    };
    let uri: Uri = url.parse().map_err(|_| bad("it is not a URL"))?;
    loopback_of(&uri).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(vars: &[(&str, &str)]) -> Result<AwsConfig, ConfigError> {
        AwsConfig::from_vars(|name| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn a_region_is_needed_and_checked() {
        assert_eq!(from(&[]).expect_err("no region"), ConfigError::NoRegion);
        assert_eq!(
            from(&[("AWS_REGION", " ")]).expect_err("no region"),
            ConfigError::NoRegion
        );
        let region = |vars| from(vars).expect("good settings").region;
        assert_eq!(region(&[("AWS_REGION", "eu-central-1\n")]), "eu-central-1");
        assert_eq!(region(&[("AWS_DEFAULT_REGION", "us-east-1")]), "us-east-1");
        assert_eq!(
            region(&[("AWS_REGION", "a-1"), ("AWS_DEFAULT_REGION", "b-1")]),
            "a-1"
        );
        for bad in ["eu.central", "EU-CENTRAL-1", "evil.example/#"] {
            assert_eq!(
                from(&[("AWS_REGION", bad)]).expect_err(bad),
                ConfigError::BadRegion(bad.into())
            );
        }
    }

    #[test]
    fn endpoints_that_would_leak_are_refused() {
        let with = |url: &'static str| from(&[("AWS_REGION", "a-1"), ("AWS_ENDPOINT_URL", url)]);
        for good in [
            "https://ec2.example",
            "http://127.0.0.1:5000",
            "http://localhost:5000",
            "http://[::1]:1",
        ] {
            assert!(with(good).is_ok(), "{good}");
        }
        for bad in [
            "http://ec2.example",
            "ec2.example",
            "http://127.0.0.1.example",
            "https://u:secret@x.example",
        ] {
            let error = with(bad).expect_err(bad).to_string();
            assert!(
                error.starts_with("AWS_ENDPOINT_URL ") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn given_credentials_are_never_printed() {
        let config =
            AwsConfig::fixed("a-1", "http://127.0.0.1", "AKIAEXAMPLE", "s3cret").expect("good");
        let printed = format!("{config:?}");
        assert!(
            !printed.contains("s3cret") && !printed.contains("AKIAEXAMPLE"),
            "{printed}"
        );
    }
}
