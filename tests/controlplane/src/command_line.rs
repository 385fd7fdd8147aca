//! The command lines of a control plane's processes.

use crate::{Component, CsiFaults, Options, ports::Ports, work_dir::WorkDir};
use serde_json::json;
use std::{fmt, path::Path};

/// The service network; nothing in the tests ever uses it, but the API server wants one.
const SERVICE_RANGE: &str = "10.0.0.0/24";
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Values that a component's command line is made from.
pub(crate) struct Context<'a> {
    pub options: &'a Options,
    pub dir: &'a WorkDir,
    pub ports: &'a Ports,
    /// The faults that the CSI controller starts with.
    pub faults: CsiFaults,
}

/// Arguments and environment of a component. Stock flags, but: loopback only, no leader election (there is one of
/// each), ports shared with the harness, which holds them.
pub(crate) fn command_line(
    component: Component,
    at: &Context<'_>,
) -> (Vec<String>, Vec<(String, String)>) {
    let mut environment = Vec::new();
    let arguments = match component {
        Component::Etcd => etcd(at),
        Component::ApiServer => api_server(at),
        Component::ControllerManager => controller_manager(at),
        Component::Scheduler => scheduler(at),
        Component::CsiController => {
            if let Some(csi) = &at.options.csi {
                environment.push(("LINODE_URL".to_owned(), csi.linode_url.clone()));
                environment.push(("LINODE_TOKEN".to_owned(), csi.linode_token.clone()));
            }
            csi_controller(at)
        }
        Component::CsiAttacher => csi_attacher(at),
    };
    (arguments, environment)
}

fn flag(name: &str, value: impl fmt::Display) -> String {
    format!("--{name}={value}")
}

fn file(name: &str, path: &Path) -> String {
    flag(name, path.display())
}

fn etcd(at: &Context<'_>) -> Vec<String> {
    let client = at.ports.etcd_url();
    let peer = format!("http://127.0.0.1:{}", at.ports.etcd_peer());
    vec![
        flag("name", "only"),
        file("data-dir", &at.dir.path().join("etcd")),
        flag("listen-client-urls", &client),
        flag("advertise-client-urls", &client),
        flag("listen-peer-urls", &peer),
        flag("initial-advertise-peer-urls", &peer),
        flag("initial-cluster", format!("only={peer}")),
        // The data need not survive the machine.
        flag("unsafe-no-fsync", true),
        flag("socket-reuse-port", true),
        // Milliseconds. The only member elects itself after one timeout, by default a second of every start.
        flag("heartbeat-interval", 20),
        flag("election-timeout", 100),
        flag("log-level", "warn"),
    ]
}

fn api_server(at: &Context<'_>) -> Vec<String> {
    let mut all = vec![
        flag("etcd-servers", at.ports.etcd_url()),
        flag("bind-address", "127.0.0.1"),
        flag("advertise-address", "127.0.0.1"),
        flag("secure-port", at.ports.api_server()),
        flag("permit-port-sharing", true),
        file("cert-dir", &at.dir.certificates()),
        file("token-auth-file", &at.dir.tokens()),
        flag("authorization-mode", "RBAC"),
        flag("allow-privileged", true),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        flag("service-account-issuer", ISSUER),
        file("service-account-key-file", &at.dir.service_account_key()),
        file(
            "service-account-signing-key-file",
            &at.dir.service_account_key(),
        ),
        file("audit-policy-file", &at.dir.audit_policy()),
        file("audit-log-path", &at.dir.audit_log()),
        // Never rotated: a test reads the one file. MiB.
        flag("audit-log-maxsize", 100_000),
        // Endpoints on loopback are invalid, and nothing in the tests looks for the `kubernetes` service.
        flag("endpoint-reconciler-type", "none"),
    ];
    all.extend(at.options.api_server_flags.iter().cloned());
    all
}

fn controller_manager(at: &Context<'_>) -> Vec<String> {
    let mut all = shared_by_clients(
        Component::ControllerManager,
        at,
        at.ports.controller_manager(),
    );
    all.extend([
        file(
            "service-account-private-key-file",
            &at.dir.service_account_key(),
        ),
        file("root-ca-file", &at.dir.api_server_certificate()),
    ]);
    all.extend(at.options.controller_manager_flags.iter().cloned());
    all
}

fn scheduler(at: &Context<'_>) -> Vec<String> {
    shared_by_clients(Component::Scheduler, at, at.ports.scheduler())
}

fn shared_by_clients(component: Component, at: &Context<'_>, port: u16) -> Vec<String> {
    let kubeconfig = at.dir.kubeconfig(component.name());
    vec![
        file("kubeconfig", &kubeconfig),
        file("authentication-kubeconfig", &kubeconfig),
        file("authorization-kubeconfig", &kubeconfig),
        flag("bind-address", "127.0.0.1"),
        flag("secure-port", port),
        flag("permit-port-sharing", true),
        flag("leader-elect", false),
    ]
}

fn csi_controller(at: &Context<'_>) -> Vec<String> {
    let mut all = vec![
        flag(
            "endpoint",
            format!("unix://{}", at.dir.csi_socket().display()),
        ),
        // The kernel chooses the port, and the file tells it.
        flag("control-address", "127.0.0.1:0"),
        file("control-address-file", &at.dir.csi_control_address()),
        flag("faults", json!(at.faults)),
    ];
    if let Some(csi) = &at.options.csi {
        all.push(flag("driver-name", &csi.driver));
        all.push(flag(
            "poll-interval",
            format!("{}ms", csi.poll_interval.as_millis()),
        ));
    }
    all
}

fn csi_attacher(at: &Context<'_>) -> Vec<String> {
    let mut all = vec![
        flag("csi-address", at.dir.csi_socket().display()),
        file(
            "kubeconfig",
            &at.dir.kubeconfig(Component::CsiAttacher.name()),
        ),
        // Its log then tells every decision.
        flag("v", 5),
    ];
    if let Some(csi) = &at.options.csi {
        all.extend(csi.attacher_flags.iter().cloned());
    }
    all
}
