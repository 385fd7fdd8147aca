//! A stage for the shipped binary: the in-memory API server and the cloud simulator on loopback sockets, a kubeconfig,
//! and one StatefulSet whose volume is a phantom attachment.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod golden;
pub mod world;

use axum::body::Body;
use reattach_cloud_simulator::{CloudSim, InstanceNo, NewInstance, NewVolume, VolumeNo};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb};
use reattach_sim::{ApiServer, manifests, names};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tower::Service;

pub const NS: &str = "cache";
pub const CLAIM: &str = "data-redis-0";
pub const POD: &str = "redis-0";
pub const NODE: &str = "n0";
pub const HANDLE: &str = "7001-pvc1";
/// The controller's leader Lease: namespace and name.
pub const LEASE: (&str, &str) = ("reattach-system", "reattach-controller");
pub const DRIVER: &str = "linodebs.csi.linode.com";
pub const BOOT: &str = "0b00-7e57-0002";
pub const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
/// How long a test waits for a command or for a state of the stage before it gives up. The longest of them waits 17 s on an
/// idle machine, 15 s of that for a Lease to run out.
pub const PATIENCE: Duration = Duration::from_secs(300);

pub struct Stage {
    pub server: ApiServer,
    pub cloud: CloudSim,
    pub kubeconfig: PathBuf,
    pub cloud_url: String,
    pub dir: PathBuf,
    /// While it is true the cloud lives an hour ago: what is set up then is old news.
    an_hour_ago: Arc<AtomicBool>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        // A failed test keeps its files to be looked at.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// What a run of the binary left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Checks how a run ended, and what it says wherever lines are wrapped.
#[track_caller]
pub fn ended(ran: &Ran, code: i32, parts: &[&str]) {
    println!("rc {}\n--- out\n{}--- err\n{}", ran.code, ran.out, ran.err);
    assert_eq!(ran.code, code, "{ran:?}");
    let all = format!("{}{}", ran.out, ran.err);
    let flat = all.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in parts {
        assert!(flat.contains(part), "{part:?} is not in:\n{all}");
    }
}

impl Stage {
    /// A stage with the custom resources and the stuck workload.
    pub async fn new(name: &str) -> Self {
        let stage = Self::empty(name).await;
        for crd in reattach_api::all_crds() {
            assert!(
                stage
                    .server
                    .register_crd(&serde_json::to_value(crd).unwrap())
            );
        }
        stage.set();
        stage
    }

    /// A stage with neither.
    pub async fn empty(name: &str) -> Self {
        let server = ApiServer::new(reattach_sim::Clock::wall(), 7);
        let an_hour_ago = Arc::new(AtomicBool::new(true));
        let (past, now) = (
            an_hour_ago.clone(),
            reattach_cloud_simulator::clock::system(),
        );
        let cloud = CloudSim::new(Arc::new(move || {
            let back = if past.load(Ordering::SeqCst) {
                jiff::SignedDuration::from_hours(1)
            } else {
                jiff::SignedDuration::ZERO
            };
            now() - back
        }));
        cloud.add_token(
            TOKEN,
            &[
                "volumes:read_write",
                "linodes:read_write",
                "events:read_only",
            ],
        );
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let api = serve(api_router(server.clone())).await;
        let cloud_url = serve(reattach_cloud_simulator::router(cloud.clone())).await;
        let kubeconfig = dir.join("kubeconfig");
        std::fs::write(&kubeconfig, kubeconfig_text(&api)).unwrap();
        Self {
            server,
            cloud,
            kubeconfig,
            cloud_url,
            dir,
            an_hour_ago,
        }
    }

    /// One StatefulSet on one node: VolumeAttachment and cloud say attached, the guest has no device.
    fn set(&self) {
        let cloud = &self.cloud;
        cloud
            .create_instance(NewInstance::new("n0").with_id(100))
            .unwrap();
        cloud
            .create_volume(NewVolume::new("pvc1").with_id(7001))
            .unwrap();
        cloud.attach_now(VolumeNo(7001), InstanceNo(100)).unwrap();
        self.an_hour_ago.store(false, Ordering::SeqCst);
        cloud.make_phantom(VolumeNo(7001)).unwrap();
        let s = &self.server;
        s.insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NS}}));
        s.insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "reattach-system"}}));
        s.insert(
            &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
            "spec": {"attachRequired": true}}),
        );
        self.insert_lease("", 0);
        let claim = s.insert(&manifests::claim(NS, CLAIM, "pvc-1"));
        let volume = manifests::linode_volume("pvc-1", HANDLE, "ext4", NS, CLAIM);
        s.insert(&manifests::bound_to(volume, &claim));
        let mut set = manifests::stateful_set(NS, "redis", 1);
        set["spec"]["template"]["spec"]["serviceAccountName"] = json!("default");
        set["status"] = json!({"replicas": 1, "readyReplicas": 0, "observedGeneration": 1,
            "currentRevision": "redis-1", "updateRevision": "redis-1"});
        let set = s.insert(&set);
        self.insert_node();
        self.insert_pod(set["metadata"]["uid"].as_str().unwrap(), false);
        self.insert_attachment();
        self.insert_report(&[]);
        let at = s.clock().now().to_string();
        let pod = s.read("", "pods", NS, POD).unwrap();
        s.insert(&json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "redis-0.1", "namespace": NS},
            "type": "Warning", "reason": "FailedMount", "count": 7, "firstTimestamp": at, "lastTimestamp": at,
            "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": NS, "name": POD, "uid": pod["metadata"]["uid"]},
            "source": {"component": "kubelet", "host": NODE},
            "message": "MountVolume.MountDevice failed for volume \"pvc-1\" : rpc error: code = Internal desc = Unable to find device path out of attempted paths: [/dev/disk/by-id/linode-pvc1 /dev/disk/by-id/scsi-0Linode_Volume_pvc1]",
        }));
    }

    pub fn insert_node(&self) {
        let at = self.server.clock().now().to_string();
        let volume = names::unique_volume_name(HANDLE, DRIVER);
        self.server.insert(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "spec": {"providerID": "linode://100"},
            "status": {
                "nodeInfo": {"architecture": "amd64", "bootID": BOOT, "containerRuntimeVersion": "containerd://2",
                    "kernelVersion": "6.18", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3", "machineID": "m",
                    "operatingSystem": "linux", "osImage": "x", "systemUUID": "u"},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": at, "lastTransitionTime": at}],
                "volumesInUse": [volume], "volumesAttached": [{"name": volume, "devicePath": ""}],
            },
        }));
        self.server.insert(
            &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": NODE},
            "spec": {"drivers": [{"name": DRIVER, "nodeID": "100", "topologyKeys": []}]}}),
        );
        self.renew_node_lease();
    }

    /// The leader Lease. Without a holder it is of a controller that was stopped and asked for a lease of 1 s alone, so that
    /// the next leader waits no longer.
    pub fn insert_lease(&self, holder: &str, term: u64) {
        let at = self
            .server
            .clock()
            .now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string();
        let seconds = if holder.is_empty() { 1 } else { 15 };
        self.server.insert(&json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": LEASE.1, "namespace": LEASE.0},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": term, "renewTime": at}}));
    }

    /// Removes the leader Lease, as an uninstallation does.
    pub async fn remove_lease(&self) {
        let path = format!(
            "/apis/coordination.k8s.io/v1/namespaces/{}/leases/{}",
            LEASE.0, LEASE.1
        );
        world::remove(self, &path).await;
    }

    pub fn renew_node_lease(&self) {
        let at = self
            .server
            .clock()
            .now()
            .strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
            .to_string();
        self.server.insert(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": NODE, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 40, "renewTime": at}}),
        );
    }

    pub fn insert_pod(&self, set_uid: &str, ready: bool) {
        let at = self.server.clock().now().to_string();
        let word = if ready { "True" } else { "False" };
        let state = if ready {
            json!({"running": {"startedAt": at}})
        } else {
            json!({"waiting": {"reason": "ContainerCreating"}})
        };
        self.server.insert(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": POD, "namespace": NS, "labels": {"app": "redis"}, "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "redis", "uid": set_uid, "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"nodeName": NODE, "containers": [{"name": "redis", "image": "redis:1"}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}]},
            "status": {"phase": if ready { "Running" } else { "Pending" },
                "conditions": [{"type": "Ready", "status": word, "lastTransitionTime": at}],
                "containerStatuses": [{"name": "redis", "image": "redis:1", "imageID": "", "ready": ready, "restartCount": 0, "state": state}]},
        }));
    }

    pub fn attachment_name() -> String {
        names::attachment_name(HANDLE, DRIVER, NODE)
    }

    pub fn insert_attachment(&self) {
        self.server.insert(&json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": Self::attachment_name()},
            "spec": {"attacher": DRIVER, "nodeName": NODE, "source": {"persistentVolumeName": "pvc-1"}},
            "status": {"attached": true},
        }));
    }

    /// The agent's report, with these devices (serial numbers) on the machine.
    pub fn insert_report(&self, serials: &[&str]) {
        let devices: Vec<Value> = serials
            .iter()
            .map(|s| json!({"kernelName": "sdc", "dev": "8:32", "identity": {"serial": s}, "sizeBytes": 10_u64 << 30,
                "users": {"mounts": [], "holders": [], "loops": [], "openers": [], "swap": false}}))
            .collect();
        let inventory = json!({"bootId": BOOT, "bootedAt": "2021-07-11T00:00:00Z", "level": "basic",
            "devices": devices, "csiVolumes": [], "unreadable": []});
        let old = self
            .server
            .read("reattach.dev", "nodevolumereports", "", NODE);
        let mut report = old.map_or_else(
            || json!({"apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": {"name": NODE},
                "spec": {"challenges": []}, "status": {"answers": []}}),
            |old| (*old).clone(),
        );
        report["status"]["inventory"] = inventory;
        self.server.insert(&report);
    }

    /// The command, with this stage's kubeconfig and cloud.
    /// Plans are the founding runbook's, unless `args` name one: its world of one workload is what the tests play.
    pub fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-reattach"));
        command.args(args);
        if matches!(args[0], "plan" | "recover") && !args.iter().any(|a| a.starts_with("--runbook"))
        {
            command.args(["--runbook", "scale-to-zero"]);
        }
        command
            .env_clear()
            .env("COLUMNS", "100")
            .env("PATH", "/usr/bin:/bin");
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("LINODE_TOKEN", TOKEN)
            .env("LINODE_URL", &self.cloud_url);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        finish(self.command(args)).await
    }

    /// From now on the API server refuses these requests as RBAC would.
    pub fn forbid(&self, verb: Verb, resource: &str, message: &str) {
        let client = Some("jane".to_owned());
        let resource = Some(resource.to_owned());
        let requests = RequestMatch {
            verb: Some(verb),
            resource,
            client,
            ..RequestMatch::default()
        };
        let status = ApiStatus::new(403, message);
        self.server.add_fault(FaultRule::always(
            requests,
            Fault::Status {
                status,
                after_effect: false,
                retry_after: None,
            },
        ));
    }

    /// What the binary wrote: verb, resource and name of every mutation but self-subject reviews.
    pub fn writes(&self) -> Vec<String> {
        let written = |e: &reattach_sim::apiserver::AuditEntry| {
            e.verb.mutates() && !e.resource.starts_with("selfsubject") && e.user == "jane"
        };
        let mut all: Vec<String> = self
            .server
            .audit()
            .iter()
            .filter(|e| written(e))
            .map(|e| {
                format!(
                    "{:?} {}{}",
                    e.verb,
                    e.resource,
                    if e.dry_run { " (dry run)" } else { "" }
                )
            })
            .collect();
        all.dedup();
        all
    }

    /// The cloud's mutations so far.
    pub fn cloud_writes(&self) -> Vec<String> {
        let requests = self.cloud.requests();
        requests
            .iter()
            .filter(|r| r.method != "GET")
            .map(|r| format!("{} {}", r.method, r.path))
            .collect()
    }

    /// A VolumeRecovery of the claim, if there is one.
    pub fn recovery(&self) -> Option<std::sync::Arc<Value>> {
        self.server
            .list("reattach.dev", "volumerecoveries", Some(NS))
            .into_iter()
            .next()
    }
}

/// Waits until something holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

pub async fn finish(mut command: tokio::process::Command) -> Ran {
    let ended = tokio::time::timeout(PATIENCE, command.output())
        .await
        .expect("the command ends")
        .unwrap();
    Ran {
        code: ended.status.code().unwrap_or(-1),
        out: String::from_utf8(ended.stdout).unwrap(),
        err: String::from_utf8(ended.stderr).unwrap(),
    }
}

fn api_router(server: ApiServer) -> axum::Router {
    let answer = move |request: axum::extract::Request| {
        let server = server.clone();
        async move {
            let bearer = request
                .headers()
                .get("authorization")
                .and_then(|v| v.to_str().ok())
                .unwrap_or_default();
            let Some(user) = bearer.strip_prefix("Bearer ").filter(|u| *u == "jane") else {
                let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Unauthorized",
                    "message": "Unauthorized", "code": 401, "metadata": {}});
                let answer = http_answer(401, &body);
                return Ok::<_, Infallible>(answer);
            };
            let mut service = server.service_as(user);
            let group = request.uri().path() == "/apis/reattach.dev/v1alpha1";
            Ok(match service.call(request).await {
                // A real API server answers an unknown group with bare text.
                Ok(answer) if group && answer.status() == 404 => {
                    let bare = axum::http::Response::builder().status(404);
                    bare.body(Body::from("404 page not found\n")).unwrap()
                }
                Ok(answer) => answer.map(Body::new),
                Err(error) => http_answer(502, &json!({"message": error.to_string()})),
            })
        }
    };
    axum::Router::new().fallback_service(tower::service_fn(answer))
}

fn http_answer(code: u16, body: &Value) -> axum::http::Response<Body> {
    let answer = axum::http::Response::builder()
        .status(code)
        .header("content-type", "application/json");
    answer.body(Body::from(body.to_string())).unwrap()
}

async fn serve(router: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

pub fn kubeconfig_text(server: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: stage\n\
         clusters:\n- name: stage\n  cluster:\n    server: {server}\n\
         users:\n- name: jane\n  user:\n    token: jane\n- name: nobody\n  user:\n    token: nobody\n\
         contexts:\n- name: stage\n  context: {{cluster: stage, user: jane, namespace: {NS}}}\n\
         - name: stranger\n  context: {{cluster: stage, user: nobody, namespace: {NS}}}\n"
    )
}
