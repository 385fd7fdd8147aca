//! The harness against itself: each test starts a real control plane.

use std::time::Duration;
use tokio::time::Instant;

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::Deployment,
    authentication::v1::{SelfSubjectReview, UserInfo},
    core::v1::{ConfigMap, Namespace, Node, PersistentVolume, Pod, ServiceAccount},
    storage::v1::{CSINode, VolumeAttachment},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, PostParams},
};
use reattach_cloud_simulator::{
    CloudSim, InstanceNo, NewInstance, NewVolume, Timings, VolumeNo, clock, router,
};
use reattach_tests_controlplane::{
    AuditEvent, Component, ControlPlane, CsiFaults, DEFAULT_DRIVER, HarnessError, Options,
    Unpublish, eventually,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of that kind")
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    api.create(&PostParams::default(), &object(value))
        .await
        .expect("created")
}

/// A Node that the scheduler accepts.
fn ready_node(name: &str, instance: u32) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "providerID": format!("linode://{instance}") },
        "status": {
            "capacity": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "110" },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    })
}

fn pod_spec() -> Value {
    json!({
        "containers": [{ "name": "app", "image": "none" }],
        // The controller-manager's taint for a node whose kubelet is silent, and the one for a node that is new.
        "tolerations": [{ "operator": "Exists" }],
    })
}

#[tokio::test]
async fn stock_components_rbac_admission_and_audit() {
    let begun = Instant::now();
    let plane = ControlPlane::start(Options::default().user("jane", &["oncall"]))
        .await
        .expect("a control plane");
    println!(
        "control plane ready after {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    let admin = plane.admin_client();
    let version = admin
        .apiserver_version()
        .await
        .expect("a version")
        .git_version;
    // Ready-made binaries may be of another release; without the link flags it would be v0.0.0.
    let ready_made = std::env::var_os("KUBEBUILDER_ASSETS").is_some();
    assert!(
        version == "v1.36.3" || ready_made && version.starts_with("v1."),
        "{version}"
    );

    create(
        &Api::<Namespace>::all(admin.clone()),
        json!({ "metadata": { "name": "one" } }),
    )
    .await;
    plane
        .await_namespace("one")
        .await
        .expect("its ServiceAccount");
    let maps = Api::<ConfigMap>::namespaced(admin.clone(), "one");
    create(
        &maps,
        json!({ "metadata": { "name": "real" }, "data": { "k": "v" } }),
    )
    .await;
    let dry = PostParams {
        dry_run: true,
        ..Default::default()
    };
    maps.create(&dry, &object(json!({ "metadata": { "name": "dry" } })))
        .await
        .expect("a dry run");
    maps.delete(
        "real",
        &DeleteParams {
            dry_run: true,
            ..Default::default()
        },
    )
    .await
    .expect("a dry run");
    assert_eq!(
        maps.get("real").await.expect("still there").name_any(),
        "real"
    );

    refuses_strangers(&plane).await;
    refuses_by_policy(&plane, &maps).await;
    runs_workloads(&plane).await;
    knows_service_accounts(&plane).await;

    let map = |verb: &'static str, name: &'static str, by: &'static str| {
        move |e: &AuditEvent| {
            e.verb == verb
                && e.resource == "configmaps"
                && e.name.as_deref() == Some(name)
                && e.user == by
        }
    };
    let real = plane
        .await_audit("create of real", map("create", "real", "admin"))
        .await
        .expect("in the log");
    assert!(
        real.took_effect() && real.namespace.as_deref() == Some("one") && real.code == Some(201)
    );
    let dry = plane
        .await_audit("create of dry", map("create", "dry", "admin"))
        .await
        .expect("in the log");
    assert!(dry.is_write() && dry.dry_run && !dry.took_effect());
    let dry = plane
        .await_audit("delete of real", map("delete", "real", "admin"))
        .await
        .expect("in the log");
    assert!(dry.dry_run && !dry.took_effect(), "{dry:?}");
    let refused = plane
        .await_audit("jane's get", map("get", "real", "jane"))
        .await
        .expect("in the log");
    assert_eq!((refused.code, refused.is_write()), (Some(403), false));
    let unknown = |e: &AuditEvent| e.code == Some(401) && e.user.is_empty();
    plane
        .await_audit("the refused token", unknown)
        .await
        .expect("in the log");
    // The stock controllers share a user, and say in the user agent which of them it is.
    let by_controller = |e: &AuditEvent| {
        e.took_effect()
            && e.resource == "pods"
            && e.user == "system:kube-controller-manager"
            && e.user_agent.ends_with("/replicaset-controller")
    };
    plane
        .await_audit("the replicaset controller's create", by_controller)
        .await
        .expect("in the log");
    let bound = |e: &AuditEvent| {
        e.took_effect()
            && e.subresource.as_deref() == Some("binding")
            && e.user == "system:kube-scheduler"
    };
    plane
        .await_audit("the scheduler's binding", bound)
        .await
        .expect("in the log");
}

async fn refuses_strangers(plane: &ControlPlane) {
    let jane = plane.kubeconfig_for("jane").expect("jane's kubeconfig");
    let jane = plane.client_from(&jane).await.expect("a client");
    let refused = Api::<ConfigMap>::namespaced(jane, "one")
        .get("real")
        .await
        .expect_err("no role, no right");
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 403),
        "{refused}"
    );

    let nobody = plane
        .kubeconfig_with_token("nobody", "not-a-token")
        .expect("a kubeconfig");
    let nobody = plane.client_from(&nobody).await.expect("a client");
    let refused = Api::<ConfigMap>::namespaced(nobody, "one")
        .get("real")
        .await
        .expect_err("not a token");
    assert!(
        matches!(&refused, kube::Error::Api(status) if status.code == 401),
        "{refused}"
    );
    assert!(
        matches!(plane.kubeconfig_for("joe"), Err(HarnessError::UnknownUser { user }) if user == "joe")
    );
}

async fn refuses_by_policy(plane: &ControlPlane, maps: &Api<ConfigMap>) {
    let admin = plane.admin_client();
    let policy = json!({ "metadata": { "name": "only-jane" }, "spec": {
        "matchConstraints": { "resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"],
        }]},
        "validations": [{ "expression": "object.metadata.name != 'mine' || request.userInfo.username == 'jane'" }],
    }});
    create(
        &Api::<ValidatingAdmissionPolicy>::all(admin.clone()),
        policy,
    )
    .await;
    let binding = json!({ "metadata": { "name": "only-jane" }, "spec": {
        "policyName": "only-jane", "validationActions": ["Deny"],
        "matchResources": { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "one" } } },
    }});
    create(
        &Api::<ValidatingAdmissionPolicyBinding>::all(admin),
        binding,
    )
    .await;
    let dry = PostParams {
        dry_run: true,
        ..Default::default()
    };
    let mine: ConfigMap = object(json!({ "metadata": { "name": "mine" } }));
    let denied = async || maps.create(&dry, &mine).await.err().map(|e| e.to_string());
    let text = eventually("denial by the policy", LIMIT, denied)
        .await
        .expect("it takes effect");
    assert!(text.contains("only-jane"), "{text}");
}

async fn runs_workloads(plane: &ControlPlane) {
    let admin = plane.admin_client();
    create(&Api::<Node>::all(admin.clone()), ready_node("node-1", 1)).await;
    let labels = json!({ "app": "web" });
    let deployment = json!({ "metadata": { "name": "web" }, "spec": {
        "replicas": 1, "selector": { "matchLabels": labels },
        "template": { "metadata": { "labels": labels }, "spec": pod_spec() },
    }});
    create(
        &Api::<Deployment>::namespaced(admin.clone(), "one"),
        deployment,
    )
    .await;
    let pods = Api::<Pod>::namespaced(admin, "one");
    let bound = async || {
        let all = pods.list(&Default::default()).await.ok()?;
        all.into_iter().find_map(|pod| pod.spec?.node_name)
    };
    assert_eq!(
        eventually("pod on a node", LIMIT, bound)
            .await
            .expect("scheduled"),
        "node-1"
    );
}

async fn knows_service_accounts(plane: &ControlPlane) {
    let admin = plane.admin_client();
    create(
        &Api::<ServiceAccount>::namespaced(admin.clone(), "one"),
        json!({ "metadata": { "name": "agent" } }),
    )
    .await;
    let mut spec = pod_spec();
    spec["nodeName"] = "node-1".into();
    spec["serviceAccountName"] = "agent".into();
    let pod = json!({ "metadata": { "name": "agent-1" }, "spec": spec });
    create(&Api::<Pod>::namespaced(admin, "one"), pod).await;
    for (bound_to, node) in [(None, None), (Some("agent-1"), Some("node-1"))] {
        let file = plane
            .kubeconfig_for_service_account("one", "agent", bound_to)
            .await
            .expect("a kubeconfig");
        let client = plane.client_from(&file).await.expect("a client");
        let me = whoami(client).await;
        assert_eq!(
            me.username.as_deref(),
            Some("system:serviceaccount:one:agent")
        );
        let extra = me.extra.unwrap_or_default();
        let of = extra
            .get("authentication.kubernetes.io/node-name")
            .and_then(|values| values.first());
        assert_eq!(of.map(String::as_str), node);
    }
}

async fn whoami(client: Client) -> UserInfo {
    let api = Api::<SelfSubjectReview>::all(client);
    let answer = api
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .expect("who I am");
    answer
        .status
        .and_then(|status| status.user_info)
        .expect("a user")
}

#[tokio::test]
async fn components_stop_and_start() {
    let plane = ControlPlane::start(Options::default())
        .await
        .expect("a control plane");
    let admin = plane.admin_client();
    plane
        .stop_component(Component::ControllerManager)
        .expect("stopped");
    assert!(matches!(
        plane.stop_component(Component::ControllerManager),
        Err(HarnessError::WrongState {
            component: Component::ControllerManager,
            ..
        })
    ));
    create(
        &Api::<Namespace>::all(admin.clone()),
        json!({ "metadata": { "name": "two" } }),
    )
    .await;

    // The API server and its store come back at the same address with the same data.
    plane
        .restart_component(Component::Etcd)
        .await
        .expect("etcd is back");
    plane
        .restart_component(Component::ApiServer)
        .await
        .expect("the API server is back");
    let accounts = Api::<ServiceAccount>::namespaced(admin.clone(), "two");
    assert_eq!(
        Api::<Namespace>::all(admin)
            .get("two")
            .await
            .expect("kept")
            .name_any(),
        "two"
    );
    assert!(
        accounts
            .get_opt("default")
            .await
            .expect("an answer")
            .is_none(),
        "nobody runs that could make it"
    );

    plane
        .start_component(Component::ControllerManager)
        .await
        .expect("running");
    plane
        .await_namespace("two")
        .await
        .expect("its ServiceAccount");
    assert!(matches!(
        plane.start_component(Component::CsiController).await,
        Err(HarnessError::WrongState {
            component: Component::CsiController,
            ..
        })
    ));

    let (url, folder) = (plane.url(), plane.folder().to_owned());
    drop(plane);
    let port = url.rsplit(':').next().expect("a port");
    assert!(
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_err(),
        "somebody still listens"
    );
    assert!(!folder.exists());
}

/// A simulated cloud with instance 7001, behind its HTTP face.
async fn cloud() -> (CloudSim, String) {
    let cloud = CloudSim::new(clock::system());
    cloud.set_timings(Timings {
        attach_ms: 300,
        detach_ms: 300,
        ..Timings::default()
    });
    for id in [7001, 7002] {
        cloud
            .create_instance(NewInstance::new(format!("node-{id}")).with_id(id))
            .expect("an instance");
    }
    for id in [11, 12, 13] {
        cloud
            .create_volume(NewVolume::new(format!("data{id}")).with_id(id))
            .expect("a volume");
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let address = listener.local_addr().expect("an address");
    let app = router(cloud.clone());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (cloud, format!("http://{address}"))
}

/// The changing requests to the cloud.
fn mutations(cloud: &CloudSim) -> Vec<String> {
    let all = cloud
        .requests()
        .into_iter()
        .filter(|request| request.is_mutation());
    all.map(|request| format!("{} {}", request.method, request.path))
        .collect()
}

#[tokio::test]
async fn a_volume_attachment_reaches_the_csi_controller() {
    let (cloud, url) = cloud().await;
    cloud
        .attach_now(VolumeNo(12), InstanceNo(7002))
        .expect("attached");
    cloud
        .attach_now(VolumeNo(13), InstanceNo(7001))
        .expect("attached");
    let plane = ControlPlane::start(Options::with_csi(url, "token"))
        .await
        .expect("a control plane");
    let admin = plane.admin_client();
    create(&Api::<Node>::all(admin.clone()), ready_node("node-1", 7001)).await;
    let csi_node = json!({ "metadata": { "name": "node-1" }, "spec": { "drivers": [
        { "name": DEFAULT_DRIVER, "nodeID": "7001", "topologyKeys": [] },
    ]}});
    create(&Api::<CSINode>::all(admin.clone()), csi_node).await;
    for id in [11, 12, 13] {
        let volume = json!({ "metadata": { "name": format!("pv-{id}") }, "spec": {
            "capacity": { "storage": "10Gi" }, "accessModes": ["ReadWriteOnce"],
            "csi": { "driver": DEFAULT_DRIVER, "volumeHandle": format!("{id}-data{id}") },
        }});
        create(&Api::<PersistentVolume>::all(admin.clone()), volume).await;
        let attachment = json!({ "metadata": { "name": format!("va-{id}") }, "spec": {
            "attacher": DEFAULT_DRIVER, "nodeName": "node-1",
            "source": { "persistentVolumeName": format!("pv-{id}") },
        }});
        create(&Api::<VolumeAttachment>::all(admin.clone()), attachment).await;
    }
    let attachments = Api::<VolumeAttachment>::all(admin);
    let status = async |name: &str| attachments.get(name).await.ok()?.status;

    let attached = async || status("va-11").await.filter(|s| s.attached);
    let attached = eventually("attached volume 11", LIMIT, attached)
        .await
        .expect("attached");
    let device = attached
        .attachment_metadata
        .and_then(|m| m.get("devicePath").cloned());
    assert_eq!(
        device.as_deref(),
        Some("/dev/disk/by-id/scsi-0Linode_Volume_data11")
    );
    assert_eq!(
        cloud.volume(VolumeNo(11)).and_then(|v| v.holder),
        Some(InstanceNo(7001))
    );

    // What is there already needs no request.
    let attached = async || status("va-13").await.filter(|s| s.attached);
    eventually("attached volume 13", LIMIT, attached)
        .await
        .expect("attached");
    // What another instance has is refused, in Linode's words. An attacher whose cache has no PersistentVolume yet says so
    // first and tries again, so the refusal itself is waited for.
    let refused = async || {
        let text = status("va-12").await?.attach_error?.message?;
        text.contains("FailedPrecondition").then_some(text)
    };
    let text = eventually("refusal of volume 12", LIMIT, refused)
        .await
        .expect("an attachError");
    assert!(
        text.contains("volume 12 is already attached to linode 7002"),
        "{text}"
    );

    let attach_11 = "POST /v4/volumes/11/attach";

    // A detach that fails while the volume is attached …
    plane.csi_faults(Unpublish::Fail).await.expect("switched");
    attachments
        .delete("va-11", &DeleteParams::default())
        .await
        .expect("deletion asked for");
    let stuck = async || status("va-11").await?.detach_error?.message;
    let text = eventually("detachError", LIMIT, stuck)
        .await
        .expect("a detachError");
    assert!(
        text.contains("Internal") && text.contains("detach volume 11: "),
        "{text}"
    );
    // … also after the CSI controller came back, because the switch is remembered …
    plane
        .restart_component(Component::CsiController)
        .await
        .expect("running");
    let again = async || {
        let calls = plane.csi_calls().await.ok()?;
        calls
            .into_iter()
            .find(|call| call.is("ControllerUnpublishVolume") && call.finished.is_some())
    };
    let call = eventually("another Unpublish", LIMIT, again)
        .await
        .expect("tried again");
    assert_eq!(
        (call.code.as_str(), call.node.as_str(), call.volume.as_str()),
        ("Internal", "7001", "11-data11")
    );
    assert_eq!(mutations(&cloud), [attach_11]);
    // … ends when the volume is detached at the cloud by another client.
    cloud.detach(VolumeNo(11)).expect("detached");
    let gone = async || {
        attachments
            .get_opt("va-11")
            .await
            .ok()?
            .is_none()
            .then_some(())
    };
    eventually("end of the VolumeAttachment", LIMIT, gone)
        .await
        .expect("let go");
    assert_eq!(
        mutations(&cloud),
        [attach_11],
        "nothing of ours asked the cloud for it"
    );

    // A hanging one ends with the switch, and then asks the cloud.
    plane.csi_faults(Unpublish::Hang).await.expect("switched");
    attachments
        .delete("va-13", &DeleteParams::default())
        .await
        .expect("deletion asked for");
    let hangs = async || {
        let calls = plane.csi_calls().await.ok()?;
        calls
            .into_iter()
            .find(|call| call.volume == "13-data13" && call.is("ControllerUnpublishVolume"))
    };
    let call = eventually("Unpublish of volume 13", LIMIT, hangs)
        .await
        .expect("called");
    assert_eq!(call.finished, None);
    plane
        .csi_faults(CsiFaults::default())
        .await
        .expect("switched");
    let gone = async || {
        attachments
            .get_opt("va-13")
            .await
            .ok()?
            .is_none()
            .then_some(())
    };
    eventually("end of the VolumeAttachment", LIMIT, gone)
        .await
        .expect("let go");
    assert_eq!(mutations(&cloud), [attach_11, "POST /v4/volumes/13/detach"]);
    // The capability that lets external-attacher fight a wrong order of steps is in use.
    let listed = async || {
        plane
            .csi_calls()
            .await
            .ok()?
            .into_iter()
            .find(|c| c.is("ListVolumes") && c.code == "OK")
    };
    eventually("ListVolumes", Duration::from_secs(120), listed)
        .await
        .expect("listed");
}

#[tokio::test]
async fn two_control_planes_run_side_by_side() {
    let small = || Options {
        controller_manager: false,
        scheduler: false,
        ..Options::default()
    };
    let (one, two) = tokio::join!(ControlPlane::start(small()), ControlPlane::start(small()));
    let (one, two) = (one.expect("a control plane"), two.expect("a control plane"));
    assert_ne!(one.url(), two.url());
    create(
        &Api::<Namespace>::all(one.admin_client()),
        json!({ "metadata": { "name": "only-in-one" } }),
    )
    .await;
    let other = Api::<Namespace>::all(two.admin_client())
        .get_opt("only-in-one")
        .await
        .expect("an answer");
    assert!(other.is_none());
}
