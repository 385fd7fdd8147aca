//! From an HTTP request to what it asks for.

use std::collections::BTreeMap;
use std::fmt;

use super::resource::ResourceType;
use super::status::ApiStatus;

/// Verb of a request, as Kubernetes' audit log spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a collection.
    List,
    /// Follow a collection.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one object.
    Delete,
    /// DELETE of a collection.
    DeleteCollection,
}

impl Verb {
    /// Whether it can change something.
    #[must_use]
    pub fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch)
    }

    /// The name in an audit log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A parsed resource request.
#[derive(Debug, Clone)]
pub(super) struct ApiRequest {
    pub verb: Verb,
    pub rt: ResourceType,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// The subresource that `managedFields` names as the way of a write.
    pub written_through: Option<String>,
    pub query: BTreeMap<String, String>,
    pub content_type: String,
    pub metadata_only: bool,
    pub user: String,
    pub user_agent: String,
    pub dry_run: bool,
}

impl ApiRequest {
    pub fn ns(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    pub fn query(&self, key: &str) -> Option<&str> {
        self.query
            .get(key)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
    }

    pub fn flag(&self, key: &str) -> bool {
        matches!(self.query(key), Some("true" | "1"))
    }
}

/// The resource that a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// `/version`, `/api`, `/apis`, `/api/v1`, `/apis/GROUP[/VERSION]`, `/healthz` and the like.
    Meta(Vec<String>),
    Resource {
        group: String,
        version: String,
        plural: String,
        namespace: Option<String>,
        name: Option<String>,
        subresource: Option<String>,
    },
}

/// Parses a path.
pub(super) fn parse_path(path: &str) -> Result<Target, ApiStatus> {
    let segments: Vec<String> = path
        .split('/')
        .filter(|s| !s.is_empty())
        // form_urlencoded turns '+' into a space, which no path segment here contains.
        .map(|s| {
            let mut pairs = form_urlencoded::parse(s.as_bytes());
            pairs
                .next()
                .map(|(k, _)| k.into_owned())
                .unwrap_or_default()
        })
        .collect();
    let (group, version, rest) = match segments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["api", version, _, ..] => (String::new(), (*version).to_owned(), &segments[2..]),
        ["apis", group, version, _, ..] => {
            ((*group).to_owned(), (*version).to_owned(), &segments[3..])
        }
        _ => return Ok(Target::Meta(segments)),
    };
    let words: Vec<&str> = rest.iter().map(String::as_str).collect();
    let (namespace, words) = match words.as_slice() {
        ["namespaces", ns, rest @ ..]
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") =>
        {
            (Some((*ns).to_owned()), rest.to_vec())
        }
        _ => (None, words.clone()),
    };
    if words.len() > 3 || words.is_empty() {
        return Err(ApiStatus::no_such_path());
    }
    Ok(Target::Resource {
        group,
        version,
        plural: words[0].into(),
        namespace,
        name: words.get(1).map(|s| (*s).to_owned()),
        subresource: words.get(2).map(|s| (*s).to_owned()),
    })
}

/// The verb of a method on a resource path.
pub(super) fn verb_of(
    method: &http::Method,
    named: bool,
    query: &BTreeMap<String, String>,
) -> Result<Verb, ApiStatus> {
    let watching = matches!(query.get("watch").map(String::as_str), Some("true" | "1"));
    match (method.as_str(), named) {
        ("GET", false) if watching => Ok(Verb::Watch),
        ("GET", true) => Ok(Verb::Get),
        ("GET", false) => Ok(Verb::List),
        ("POST", _) => Ok(Verb::Create),
        ("PUT", true) => Ok(Verb::Update),
        ("PATCH", true) => Ok(Verb::Patch),
        ("DELETE", true) => Ok(Verb::Delete),
        ("DELETE", false) => Ok(Verb::DeleteCollection),
        _ => Err(ApiStatus::method_not_allowed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(
        path: &str,
    ) -> (
        String,
        String,
        Option<String>,
        Option<String>,
        Option<String>,
    ) {
        match parse_path(path).unwrap() {
            Target::Resource {
                group,
                plural,
                namespace,
                name,
                subresource,
                ..
            } => (group, plural, namespace, name, subresource),
            Target::Meta(m) => panic!("{m:?}"),
        }
    }

    #[test]
    fn paths() {
        let s = |t: &str| Some(t.to_owned());
        assert_eq!(
            resource("/api/v1/pods"),
            ("".into(), "pods".into(), None, None, None)
        );
        assert_eq!(
            resource("/api/v1/namespaces/default/pods/a/eviction"),
            (
                "".into(),
                "pods".into(),
                s("default"),
                s("a"),
                s("eviction")
            )
        );
        assert_eq!(
            resource("/api/v1/namespaces/x"),
            ("".into(), "namespaces".into(), None, s("x"), None)
        );
        assert_eq!(resource("/api/v1/namespaces/x/status").4, s("status"));
        assert_eq!(
            resource("/apis/apps/v1/namespaces/d/deployments/web/scale"),
            (
                "apps".into(),
                "deployments".into(),
                s("d"),
                s("web"),
                s("scale")
            )
        );
        assert!(matches!(
            parse_path("/apis/apps/v1").unwrap(),
            Target::Meta(_)
        ));
        assert!(matches!(parse_path("/version").unwrap(), Target::Meta(_)));
    }
}
