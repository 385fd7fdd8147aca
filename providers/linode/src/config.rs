//! Settings. Their names are those of Linode's own CSI driver: `LINODE_TOKEN` and `LINODE_URL`.

use http::{HeaderValue, Uri};
use reattach_core::product::Product;
use reattach_provider_api::socket::{loopback_of, redacted};
use std::{fmt, time::Duration};

/// URL of Linode's public API.
const DEFAULT_URL: &str = "https://api.linode.com";

/// Timeout for opening a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Timeout for one read. Recorded answers came within one or two seconds.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// Value of the `User-Agent` header when the program does not set its own.
const USER_AGENT: &str = concat!("reattach/", env!("CARGO_PKG_VERSION"));

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// `LINODE_TOKEN` is not set or empty.
    #[error(
        "LINODE_TOKEN is not set: create a personal access token with the scopes volumes:read_write, \
             linodes:read_write and events:read_only, and pass it in LINODE_TOKEN"
    )]
    NoToken,
    /// The token has characters that an HTTP header cannot contain. The token itself is not shown.
    #[error(
        "LINODE_TOKEN contains a character that no token has, such as a space or a line break: copy the token again"
    )]
    BadToken,
    /// `LINODE_URL` is not a URL of an API.
    #[error("LINODE_URL {url:?} cannot be used: {why}")]
    BadUrl {
        /// Value of the setting.
        url: String,
        /// Defect of the value.
        why: &'static str,
    },
    /// The HTTP client could not be made.
    #[error("the HTTP client could not be made: {0}")]
    Client(String),
}

/// A personal access token. It is never printed.
#[derive(Clone)]
pub struct Token(HeaderValue);

impl Token {
    /// Makes a token from a text. White space around it is dropped.
    ///
    /// # Errors
    /// [`ConfigError::NoToken`] when it is empty, [`ConfigError::BadToken`] when a header cannot contain it.
    pub fn new(token: &str) -> Result<Self, ConfigError> {
        let token = token.trim();
        if token.is_empty() {
            return Err(ConfigError::NoToken);
        }
        if !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ConfigError::BadToken);
        }
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| ConfigError::BadToken)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// Returns the value of the `Authorization` header, marked as sensitive.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// Settings of the client of Linode's API.
#[derive(Clone, Debug)]
pub struct LinodeConfig {
    pub(crate) base: String,
    pub(crate) loopback: bool,
    pub(crate) token: Token,
    pub(crate) connect_timeout: Duration,
    pub(crate) read_timeout: Duration,
    pub(crate) user_agent: &'static str,
}

impl LinodeConfig {
    /// Makes settings for this token at Linode's public API, or at `url` when one is given (with or without a trailing slash
    /// and a version such as `/v4`).
    ///
    /// # Errors
    /// [`ConfigError::BadUrl`] when `url` is no absolute URL, has a query or credentials, or is plain HTTP to another
    /// machine, which would send the token unencrypted.
    pub fn new(token: Token, url: Option<&str>) -> Result<Self, ConfigError> {
        let (base, loopback) = base_url(url.unwrap_or(DEFAULT_URL))?;
        let (connect_timeout, read_timeout) = (CONNECT_TIMEOUT, READ_TIMEOUT);
        Ok(Self {
            base,
            loopback,
            token,
            connect_timeout,
            read_timeout,
            user_agent: USER_AGENT,
        })
    }

    /// Makes settings from environment variables: `LINODE_TOKEN`, and `LINODE_URL` if it is set and not empty.
    ///
    /// # Errors
    /// As [`Token::new`] and [`LinodeConfig::new`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let token = Token::new(&var("LINODE_TOKEN").ok_or(ConfigError::NoToken)?)?;
        let url = var("LINODE_URL").filter(|url| !url.trim().is_empty());
        Self::new(token, url.as_deref())
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

    /// Returns the base of every path, with the version: `https://api.linode.com/v4`.
    pub fn base(&self) -> &str {
        &self.base
    }
}

/// Returns the base with its version, and whether its host is this machine.
fn base_url(url: &str) -> Result<(String, bool), ConfigError> {
    let url = url.trim();
    let bad = |why| ConfigError::BadUrl {
        url: redacted(url),
        why,
    };
    let uri: Uri = url.parse().map_err(|_| bad("it is not a URL"))?;
    let loopback = loopback_of(&uri).map_err(bad)?;
    if uri.query().is_some() {
        return Err(bad("it must not have a query"));
    }
    let path = uri.path().trim_end_matches('/');
    let version = if path.ends_with("/v4") || path.ends_with("/v4beta") {
        ""
    } else {
        "/v4"
    };
    // `loopback_of` has checked that both are present.
    let (scheme, authority) = (
        uri.scheme_str().unwrap_or_default(),
        uri.authority().map_or("", |a| a.as_str()),
    );
    Ok((format!("{scheme}://{authority}{path}{version}"), loopback))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_and_without_version_mean_the_same() {
        let table = [
            ("https://api.linode.com", "https://api.linode.com/v4"),
            ("https://api.linode.com/", "https://api.linode.com/v4"),
            ("https://api.linode.com/v4", "https://api.linode.com/v4"),
            ("https://api.linode.com/v4/", "https://api.linode.com/v4"),
            (
                " https://api.linode.com/v4beta/ ",
                "https://api.linode.com/v4beta",
            ),
            (
                "https://proxy.example:8443/linode",
                "https://proxy.example:8443/linode/v4",
            ),
            ("http://127.0.0.1:8070", "http://127.0.0.1:8070/v4"),
            ("http://localhost:8070/", "http://localhost:8070/v4"),
            ("http://[::1]:8070", "http://[::1]:8070/v4"),
        ];
        for (given, expected) in table {
            assert_eq!(
                base_url(given).map(|(base, _)| base).as_deref(),
                Ok(expected),
                "{given}"
            );
        }
    }

    #[test]
    fn urls_that_would_leak_or_miss_are_refused() {
        let bad = [
            "http://api.linode.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "ftp://127.0.0.1",
            "api.linode.com",
            "/v4",
            "",
            "https://user:secret@api.linode.com",
            "https://api.linode.com/v4?x=1",
        ];
        for url in bad {
            let error = base_url(url).expect_err(url);
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_token_is_never_printed() {
        let config = LinodeConfig::from_vars(|name| {
            (name == "LINODE_TOKEN").then(|| " s3cret\n".to_owned())
        });
        let config = config.expect("a good token");
        assert_eq!(config.base(), "https://api.linode.com/v4");
        let printed = format!("{config:?} {:?}", config.token.header());
        assert!(!printed.contains("s3cret"), "{printed}");
        assert_eq!(config.token.header().to_str().ok(), Some("Bearer s3cret"));
    }

    #[test]
    fn a_missing_or_broken_token_is_one_clear_error() {
        for (token, expected) in [
            (None, ConfigError::NoToken),
            (Some(""), ConfigError::NoToken),
            (Some("  "), ConfigError::NoToken),
            (Some("a b"), ConfigError::BadToken),
            (Some("a\nb"), ConfigError::BadToken),
            (Some("tökén"), ConfigError::BadToken),
        ] {
            let found = LinodeConfig::from_vars(|n| {
                token.filter(|_| n == "LINODE_TOKEN").map(str::to_owned)
            });
            assert_eq!(found.expect_err("no config"), expected, "{token:?}");
        }
    }
}
