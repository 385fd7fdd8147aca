//! Workloads to set the stage with.

use crate::names::APPS;
use reattach_cloud_simulator::{CloudSim, NewVolume, OpError, VolumeNo};
use reattach_sim::cloud::Ground;
use reattach_sim::{ApiServer, manifests};
use serde_json::{Value, json};

/// A volume with its claim.
#[derive(Clone, Debug)]
pub struct AppVolume {
    /// The cloud's number.
    pub number: u64,
    /// Its label at the cloud; the PersistentVolume's name without the dash.
    pub label: String,
    /// The claim.
    pub claim: String,
    /// The filesystem that the PersistentVolume asks for.
    pub fs_type: String,
}

impl AppVolume {
    /// The CSI handle, as the cloud's driver makes it.
    pub fn handle(&self, ground: Ground) -> String {
        ground.handle(VolumeNo(self.number), &self.label)
    }

    /// The PersistentVolume's name.
    pub fn pv(&self) -> String {
        self.label.replacen("pvc", "pvc-", 1)
    }

    /// Creates the cloud volume, the PersistentVolume and the bound claim.
    ///
    /// # Errors
    /// The cloud has a volume of that number or label.
    pub fn create(
        &self,
        cloud: &CloudSim,
        ground: Ground,
        server: &ApiServer,
    ) -> Result<(), OpError> {
        let volume = NewVolume::new(self.label.as_str()).with_id(self.number);
        cloud.create_volume(ground.tagged(volume, &self.pv(), APPS, &self.claim))?;
        server.insert(&manifests::csi_volume(
            ground,
            &self.pv(),
            &self.handle(ground),
            &self.fs_type,
            APPS,
            &self.claim,
        ));
        server.insert(&manifests::claim(APPS, &self.claim, &self.pv()));
        Ok(())
    }
}

/// A workload with its volumes and whatever belongs to it.
#[derive(Clone, Debug)]
pub struct App {
    /// The name of the workload, and the label `app` of its pods.
    pub name: String,
    /// Description of the app in a few words.
    pub role: String,
    /// `Deployment`, `StatefulSet` or `Pod`.
    pub kind: String,
    /// How many pods.
    pub replicas: usize,
    /// Its volumes.
    pub volumes: Vec<AppVolume>,
    /// Claims that replace those of the volumes.
    pub claims: Vec<Value>,
    /// Objects to create, the workload last.
    pub objects: Vec<Value>,
}

impl App {
    /// A Deployment with one volume on claim `NAME-data`.
    pub fn deployment(name: &str, number: u64, label: &str, role: &str) -> Self {
        let claim = format!("{name}-data");
        let mounts = [manifests::claim_volume(
            &format!("{name}-data-volume"),
            &claim,
        )];
        Self {
            name: name.to_owned(),
            role: role.to_owned(),
            kind: "Deployment".to_owned(),
            replicas: 1,
            volumes: vec![AppVolume {
                number,
                label: label.to_owned(),
                claim,
                fs_type: "ext4".to_owned(),
            }],
            claims: Vec::new(),
            objects: vec![manifests::deployment(APPS, name, 1, &mounts)],
        }
    }

    /// A StatefulSet with one volume per pod, on claims `data-NAME-0` and so on; volumes are numbered from `number`,
    /// and from the second on the ordinal is appended to the label.
    pub fn stateful_set(name: &str, number: u64, label: &str, replicas: usize, role: &str) -> Self {
        let volume = |n: usize| AppVolume {
            number: number + n as u64,
            label: if n == 0 {
                label.to_owned()
            } else {
                format!("{label}{n}")
            },
            claim: format!("data-{name}-{n}"),
            fs_type: "ext4".to_owned(),
        };
        Self {
            name: name.to_owned(),
            role: role.to_owned(),
            kind: "StatefulSet".to_owned(),
            replicas,
            volumes: (0..replicas).map(volume).collect(),
            claims: Vec::new(),
            objects: vec![manifests::stateful_set(
                APPS,
                name,
                i64::try_from(replicas).unwrap_or(1),
            )],
        }
    }

    /// A pod without an owner, with one volume on claim `NAME-data`.
    pub fn pod(name: &str, number: u64, label: &str, role: &str) -> Self {
        let mut app = Self::deployment(name, number, label, role);
        let spec = app
            .objects
            .pop()
            .map(|d| d["spec"]["template"]["spec"].clone())
            .unwrap_or_default();
        app.kind = "Pod".to_owned();
        app.objects.push(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": APPS, "labels": {"app": name}}, "spec": spec,
        }));
        app
    }

    /// Sets the filesystem of its volumes.
    #[must_use]
    pub fn with_fs_type(mut self, fs_type: &str) -> Self {
        for volume in &mut self.volumes {
            volume.fs_type = fs_type.to_owned();
        }
        self
    }

    /// Adds an object to create before the workload.
    #[must_use]
    pub fn with_object(mut self, object: Value) -> Self {
        self.objects.insert(0, object);
        self
    }

    /// Changes the workload's manifest.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        if let Some(workload) = self.objects.last_mut() {
            change(workload);
        }
        self
    }

    /// Lets its pods mount a Secret. The Secret itself is not created.
    #[must_use]
    pub fn with_secret(self, secret: &str) -> Self {
        let name = format!("{}-config", self.name);
        self.with_volume(manifests::secret_volume(&name, secret))
    }

    /// Lets its pods mount one more volume.
    #[must_use]
    pub fn with_volume(self, volume: Value) -> Self {
        self.with(|w| {
            let spec = &mut w["spec"]["template"]["spec"];
            match spec["volumes"].as_array_mut() {
                Some(volumes) => volumes.push(volume),
                None => spec["volumes"] = json!([volume]),
            }
        })
    }

    /// The group, and the plural of its kind in a path.
    fn resource(&self) -> (&'static str, &'static str) {
        match self.kind.as_str() {
            "StatefulSet" => ("apps", "statefulsets"),
            "Pod" => ("", "pods"),
            _ => ("apps", "deployments"),
        }
    }

    /// The API path of the workload.
    pub fn path(&self) -> String {
        let (group, plural) = self.resource();
        let root = if group.is_empty() {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{group}/v1")
        };
        format!("{root}/namespaces/{APPS}/{plural}/{}", self.name)
    }

    /// The workload as it is now.
    pub fn read(&self, server: &ApiServer) -> Option<std::sync::Arc<Value>> {
        let (group, plural) = self.resource();
        server.read(group, plural, APPS, &self.name)
    }
}
