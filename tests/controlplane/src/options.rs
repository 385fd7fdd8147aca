//! Options of a control plane for tests.

use crate::{Component, CsiFaults};
use std::time::Duration;

/// The name of Linode's CSI driver.
pub const DEFAULT_DRIVER: &str = "linodebs.csi.linode.com";

/// The parts of a control plane and its users. [`Options::default`] has all four stock components and no CSI.
#[derive(Clone, Debug)]
pub struct Options {
    /// Users beside the administrator, each with a token of its own. RBAC gives them nothing by itself.
    pub users: Vec<User>,
    /// Whether kube-controller-manager runs (attach/detach controller, workload controllers, garbage collection).
    pub controller_manager: bool,
    /// Whether kube-scheduler runs.
    pub scheduler: bool,
    /// The CSI controller and external-attacher; `None` runs neither.
    pub csi: Option<CsiOptions>,
    /// More flags for kube-apiserver, e.g. `--feature-gates=…`; later flags win.
    pub api_server_flags: Vec<String>,
    /// More flags for kube-controller-manager; later flags win.
    pub controller_manager_flags: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            users: Vec::new(),
            controller_manager: true,
            scheduler: true,
            csi: None,
            api_server_flags: Vec::new(),
            controller_manager_flags: Vec::new(),
        }
    }
}

impl Options {
    /// The stock components, and Linode's CSI driver over the cloud API at `linode_url`.
    pub fn with_csi(linode_url: impl Into<String>, linode_token: impl Into<String>) -> Self {
        Self {
            csi: Some(CsiOptions::new(linode_url, linode_token)),
            ..Self::default()
        }
    }

    /// Whether the control plane has this component.
    pub(crate) fn want(&self, component: Component) -> bool {
        match component {
            Component::Etcd | Component::ApiServer => true,
            Component::ControllerManager => self.controller_manager,
            Component::Scheduler => self.scheduler,
            Component::CsiController => self.csi.is_some(),
            Component::CsiAttacher => self.csi.as_ref().is_some_and(|csi| csi.attacher),
        }
    }

    /// Adds a user, see [`Options::users`].
    pub fn user(mut self, name: impl Into<String>, groups: &[&str]) -> Self {
        self.users.push(User {
            name: name.into(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        });
        self
    }

    /// Turns a feature gate of kube-apiserver on that is off by default (Kubernetes `pkg/features/kube_features.go`).
    pub fn feature_gate(mut self, name: &str) -> Self {
        // The flag takes a map: given more than once, its values add up.
        self.api_server_flags
            .push(format!("--feature-gates={name}=true"));
        self
    }
}

/// A user with a static token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user name that the API server sees.
    pub name: String,
    /// Its groups beside `system:authenticated`.
    pub groups: Vec<String>,
}

/// The CSI controller and external-attacher.
#[derive(Clone, Debug)]
pub struct CsiOptions {
    /// Base address of the Linode API v4, with or without `/v4` at its end.
    pub linode_url: String,
    /// The token sent to it.
    pub linode_token: String,
    /// The CSI driver's name; a CSIDriver object of that name is created.
    pub driver: String,
    /// Time between two looks at a volume that is being attached or detached.
    pub poll_interval: Duration,
    /// Faults of the CSI controller from its start on.
    pub faults: CsiFaults,
    /// Whether external-attacher runs.
    pub attacher: bool,
    /// More flags for external-attacher, which otherwise has its defaults; later flags win.
    pub attacher_flags: Vec<String>,
}

impl CsiOptions {
    /// Linode's driver, healthy, with external-attacher.
    pub fn new(linode_url: impl Into<String>, linode_token: impl Into<String>) -> Self {
        Self {
            linode_url: linode_url.into(),
            linode_token: linode_token.into(),
            driver: DEFAULT_DRIVER.to_owned(),
            poll_interval: Duration::from_millis(500),
            faults: CsiFaults::default(),
            attacher: true,
            attacher_flags: Vec::new(),
        }
    }
}
