//! Names and versions of the programs, as their requests to Kubernetes and to the clouds carry them.

/// One of the programs that are shipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `reattach-controller`.
    Controller,
    /// `reattach-agent`.
    Agent,
    /// `kubectl-reattach`.
    Cli,
}

impl Product {
    /// Returns name and version, such as `reattach-controller/0.1.0`: the `User-Agent` of each request, and the field
    /// manager of each object that the request creates or changes.
    pub const fn user_agent(self) -> &'static str {
        match self {
            Self::Controller => concat!("reattach-controller/", env!("CARGO_PKG_VERSION")),
            Self::Agent => concat!("reattach-agent/", env!("CARGO_PKG_VERSION")),
            Self::Cli => concat!("kubectl-reattach/", env!("CARGO_PKG_VERSION")),
        }
    }
}
