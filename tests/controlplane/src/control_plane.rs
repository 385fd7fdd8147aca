//! The running control plane.

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, ServiceAccount},
    storage::v1::{CSIDriver, CSIDriverSpec},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ObjectMeta, PostParams},
};

use crate::{
    AuditEvent, Component, CsiCall, CsiFaults, HarnessError, Options, Unpublish, audit, binaries,
    credentials::{self, ADMIN, Tokens},
    processes::{Processes, eventually},
};

/// How long the controllers may take to do what they do at the start of a cluster.
const SETTLE: Duration = Duration::from_secs(60);
/// Validity of a ServiceAccount token, seconds: longer than any test.
const TOKEN_SECONDS: i64 = 6 * 3600;

/// A real control plane that runs as long as this value lives. See the crate's page for what it guarantees.
pub struct ControlPlane {
    processes: Processes,
    tokens: Tokens,
    admin: Client,
    audit: Mutex<audit::Reader>,
}

impl ControlPlane {
    /// Starts everything that the options contain and returns when it works: every component says that it is ready,
    /// and the `default` namespace has its ServiceAccount where a controller-manager runs. Takes some seconds, and
    /// minutes where the binaries must first be built.
    ///
    /// # Errors
    /// No binaries; a component that ends, or is not ready after two minutes, with the end of its log.
    pub async fn start(options: Options) -> Result<Self, HarnessError> {
        let binaries = tokio::task::spawn_blocking(binaries::find)
            .await
            .map_err(|e| HarnessError::Binaries {
                reason: e.to_string(),
            })??;
        let processes = Processes::prepare(options, binaries)?;
        match Self::start_all(&processes).await {
            Ok((tokens, admin)) => Ok(Self {
                processes,
                tokens,
                admin,
                audit: Mutex::default(),
            }),
            Err(e) => {
                processes.dir.keep();
                Err(e)
            }
        }
    }

    async fn start_all(processes: &Processes) -> Result<(Tokens, Client), HarnessError> {
        let (dir, ports) = (&processes.dir, &processes.ports);
        let tokens = Tokens::issue(&processes.options.users)?;
        dir.write(&dir.tokens(), &tokens.csv())?;
        dir.write(
            &dir.service_account_key(),
            &credentials::service_account_key()?,
        )?;
        dir.write(&dir.audit_policy(), &format!("{:#}\n", audit::policy()))?;
        let kubeconfig = |file: &str, user: &str| {
            credentials::write_kubeconfig(dir, ports, file, user, tokens.of(user)?)
        };
        for component in [Component::ControllerManager, Component::Scheduler] {
            kubeconfig(component.name(), &format!("system:{component}"))?;
        }
        kubeconfig(Component::CsiAttacher.name(), Component::CsiAttacher.name())?;
        let admin = kubeconfig(ADMIN, ADMIN)?;

        for component in [Component::Etcd, Component::ApiServer] {
            processes.spawn(component)?;
            processes.ready(component).await?;
        }
        // Not earlier: the certificate that the client trusts is made by the API server.
        let admin = credentials::client(&admin).await?;
        if let Some(csi) = &processes.options.csi {
            create_driver(&admin, &csi.driver).await?;
        }
        let rest: Vec<Component> = Component::ALL
            .into_iter()
            .skip(2)
            .filter(|c| processes.options.want(*c))
            .collect();
        for component in &rest {
            processes.spawn(*component)?;
        }
        for component in &rest {
            processes.ready(*component).await?;
        }
        if processes.options.controller_manager {
            await_default_service_account(&admin, "default").await?;
        }
        Ok((tokens, admin))
    }

    /// A client of the administrator (`system:masters`), user `admin`.
    pub fn admin_client(&self) -> Client {
        self.admin.clone()
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.processes.dir.kubeconfig(ADMIN)
    }

    /// The base address of the API server, `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.processes.ports.api_server_url()
    }

    /// A kubeconfig for one of [`Options::users`] (or `admin`).
    ///
    /// # Errors
    /// [`HarnessError::UnknownUser`].
    pub fn kubeconfig_for(&self, user: &str) -> Result<PathBuf, HarnessError> {
        let file = format!("user-{user}");
        self.kubeconfig_with_token(&file, self.tokens.of(user)?)
    }

    /// A kubeconfig for any bearer token, valid or not, kept under this name.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf, HarnessError> {
        credentials::write_kubeconfig(
            &self.processes.dir,
            &self.processes.ports,
            name,
            name,
            token,
        )
    }

    /// A kubeconfig for a ServiceAccount, with a token from the API server. With `pod` (of the same namespace) the token
    /// is bound to that pod, as a mounted one is: it then carries the pod's node
    /// (`authentication.kubernetes.io/node-name`), and ends with the pod.
    pub async fn kubeconfig_for_service_account(
        &self,
        namespace: &str,
        name: &str,
        pod: Option<&str>,
    ) -> Result<PathBuf, HarnessError> {
        let token = self.service_account_token(namespace, name, pod).await?;
        let bound = pod.map(|pod| format!("-{pod}")).unwrap_or_default();
        self.kubeconfig_with_token(&format!("sa-{namespace}-{name}{bound}"), &token)
    }

    /// As [`ControlPlane::kubeconfig_for_service_account`], the token alone.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        pod: Option<&str>,
    ) -> Result<String, HarnessError> {
        let what = format!("cannot get a token for ServiceAccount {namespace}/{name}");
        let bound_object_ref = match pod {
            None => None,
            Some(pod) => {
                let found = Api::<Pod>::namespaced(self.admin_client(), namespace)
                    .get(pod)
                    .await;
                let found = found.map_err(HarnessError::kube(&what))?;
                Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(pod.to_owned()),
                    uid: found.uid(),
                })
            }
        };
        let spec = TokenRequestSpec {
            bound_object_ref,
            expiration_seconds: Some(TOKEN_SECONDS),
            ..Default::default()
        };
        let request = TokenRequest {
            spec,
            ..Default::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(self.admin_client(), namespace);
        let answer = accounts
            .create_token_request(name, &PostParams::default(), &request)
            .await;
        let status = answer.map_err(HarnessError::kube(&what))?.status;
        status
            .map(|status| status.token)
            .ok_or_else(|| HarnessError::Incomplete {
                what: "a token".to_owned(),
            })
    }

    /// A client from one of the kubeconfigs above, with kube's default behaviour.
    pub async fn client_from(&self, kubeconfig: &Path) -> Result<Client, HarnessError> {
        credentials::client(kubeconfig).await
    }

    /// Waits until the controller-manager has given the namespace its `default` ServiceAccount, without which the API
    /// server refuses pods.
    pub async fn await_namespace(&self, namespace: &str) -> Result<(), HarnessError> {
        await_default_service_account(&self.admin, namespace).await
    }

    /// Everything in the audit log up to now, in the order in which the requests ended. A request's event is there when
    /// its answer is complete, or an instant later: use [`ControlPlane::await_audit`] to wait for one.
    ///
    /// # Errors
    /// An unreadable log.
    pub fn audit_events(&self) -> Result<Vec<AuditEvent>, HarnessError> {
        self.audit_events_of(|_| true)
    }

    /// As [`ControlPlane::audit_events`], the wanted ones alone.
    pub fn audit_events_of(
        &self,
        wanted: impl FnMut(&&AuditEvent) -> bool,
    ) -> Result<Vec<AuditEvent>, HarnessError> {
        let mut reader = self.audit.lock().unwrap_or_else(PoisonError::into_inner);
        let all = reader.read(&self.processes.dir.audit_log())?;
        Ok(all.iter().filter(wanted).cloned().collect())
    }

    /// Waits until the audit log holds an event like this, and returns the first.
    ///
    /// # Errors
    /// An unreadable log; [`HarnessError::Timeout`] after 10 s.
    pub async fn await_audit(
        &self,
        what: &str,
        wanted: impl Fn(&AuditEvent) -> bool,
    ) -> Result<AuditEvent, HarnessError> {
        let look = async || match self.audit_events() {
            Ok(all) => all.into_iter().find(&wanted).map(Ok),
            Err(e) => Some(Err(e)),
        };
        eventually(what, Duration::from_secs(10), look).await?
    }

    /// Kills a component as a power cut would; returns when it is gone. external-attacher goes with the CSI controller,
    /// because it ends itself when it loses that connection.
    ///
    /// # Errors
    /// [`HarnessError::WrongState`] when it does not run.
    pub fn stop_component(&self, component: Component) -> Result<(), HarnessError> {
        self.processes.stop(component)
    }

    /// Starts a stopped component again, at the same address with the same data; returns when it is ready. An
    /// external-attacher that went with the CSI controller comes back with it.
    ///
    /// # Errors
    /// [`HarnessError::WrongState`] when it runs or is not part of the options; otherwise as [`ControlPlane::start`].
    pub async fn start_component(&self, component: Component) -> Result<(), HarnessError> {
        self.processes.start(component).await
    }

    /// Stops and starts a component.
    ///
    /// # Errors
    /// As those two.
    pub async fn restart_component(&self, component: Component) -> Result<(), HarnessError> {
        self.stop_component(component)?;
        self.start_component(component).await
    }

    /// Sets what the CSI controller gets wrong, from now on and after a restart.
    ///
    /// # Errors
    /// A control endpoint that does not answer.
    pub async fn csi_faults(&self, faults: impl Into<CsiFaults>) -> Result<(), HarnessError> {
        let faults = faults.into();
        self.processes.set_csi_faults(|now| *now = faults).await
    }

    /// Sets how the CSI controller unpublishes one volume, and changes nothing for the others.
    ///
    /// # Errors
    /// As [`ControlPlane::csi_faults`].
    pub async fn csi_unpublish(
        &self,
        volume: u64,
        unpublish: Unpublish,
    ) -> Result<(), HarnessError> {
        self.processes
            .set_csi_faults(|now| _ = now.volumes.insert(volume, unpublish))
            .await
    }

    /// The CSI calls since the CSI controller was last started, in the order in which they came.
    ///
    /// # Errors
    /// A CSI controller that does not run or answer.
    pub async fn csi_calls(&self) -> Result<Vec<CsiCall>, HarnessError> {
        self.processes.csi()?.calls().await
    }

    /// The temporary folder: logs, kubeconfigs, audit log.
    pub fn folder(&self) -> &Path {
        self.processes.dir.path()
    }

    /// A component's log file.
    pub fn log(&self, component: Component) -> PathBuf {
        self.processes.dir.log(component)
    }

    /// Keeps the folder when the handle drops, and prints its path then. A panic does the same by itself; a test that
    /// fails by returning an error calls this.
    pub fn keep_folder(&self) {
        self.processes.dir.keep();
    }
}

/// The objects that the driver's installation would create; attributes as in Linode's chart.
async fn create_driver(admin: &Client, name: &str) -> Result<(), HarnessError> {
    let driver = CSIDriver {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        spec: CSIDriverSpec {
            attach_required: Some(true),
            pod_info_on_mount: Some(true),
            ..Default::default()
        },
    };
    let created = Api::<CSIDriver>::all(admin.clone())
        .create(&PostParams::default(), &driver)
        .await;
    created.map(|_| ()).map_err(HarnessError::kube(format!(
        "cannot create CSIDriver {name}"
    )))
}

async fn await_default_service_account(
    admin: &Client,
    namespace: &str,
) -> Result<(), HarnessError> {
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), namespace);
    let what = format!("ServiceAccount {namespace}/default");
    eventually(&what, SETTLE, async || {
        accounts.get_opt("default").await.ok().flatten().map(|_| ())
    })
    .await
}
