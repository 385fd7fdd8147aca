//! A scene in one of the two simulators: a volume on one of two instances, and a second volume on the other.

use crate::support::{self, HOLDER, KEY, OTHER, SECRET, VOLUME};
use aws_sdk_ec2::{
    Client as Ec2,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    types::{InstanceType, ResourceType, Tag, TagSpecification},
};
use jiff::{SignedDuration, Timestamp};
use reattach_aws::{AwsConfig, AwsProvider};
use reattach_cloud_simulator::{
    CloudSim, ManualClock, NewInstance, NewVolume, VolumeNo,
    ec2::{instance_id, volume_id},
    router,
};
use reattach_core::ids::{InstanceId, VolumeId};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
};

const ZONE: &str = "eu-central-1a";

/// The second volume of the simulated cloud.
const SECOND: VolumeNo = VolumeNo(0x18);

/// An image that moto knows.
const IMAGE: &str = "ami-12c6146b";

/// A scene.
pub struct World {
    /// The provider over it.
    pub provider: AwsProvider,
    /// The SDK over it, without retries, for what the provider never sends.
    pub ec2: Ec2,
    /// The volume, on [`World::holder`].
    pub volume: VolumeId,
    /// Who has it.
    pub holder: InstanceId,
    /// Who has the second volume, under the same device name.
    pub other: InstanceId,
    /// The simulated cloud, where it is this project's.
    own: Option<(CloudSim, ManualClock)>,
    url: String,
}

fn sdk(url: &str) -> Ec2 {
    let config = aws_sdk_ec2::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .endpoint_url(url)
        .credentials_provider(Credentials::new(KEY, SECRET, None, None, "fixed"))
        .retry_config(RetryConfig::disabled());
    Ec2::from_conf(config.build())
}

fn provider(url: &str) -> AwsProvider {
    let config = AwsConfig::fixed("eu-central-1", url, KEY, SECRET).expect("settings");
    AwsProvider::connect(config).expect("a provider")
}

impl World {
    /// A scene in this project's own simulator, served on a socket of its own.
    pub async fn simulated() -> Self {
        let clock = ManualClock::new(support::start());
        let sim = CloudSim::new(clock.clock());
        for (id, label) in [(HOLDER, "one"), (OTHER, "two")] {
            let mut new = NewInstance::new(label).with_id(id.0);
            (new.region, new.watchdog_enabled) = (ZONE.to_owned(), false);
            sim.create_instance(new).expect("an instance");
        }
        for (id, label, instance) in [(VOLUME, "first", HOLDER), (SECOND, "second", OTHER)] {
            let mut new = NewVolume::new(label).with_id(id.0);
            new.region = ZONE.to_owned();
            sim.create_volume(new).expect("a volume");
            sim.attach_now_with(id, instance, true).expect("attached");
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = router(sim.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self {
            provider: provider(&url),
            ec2: sdk(&url),
            volume: VolumeId::new(volume_id(VOLUME)),
            holder: InstanceId::new(instance_id(HOLDER)),
            other: InstanceId::new(instance_id(OTHER)),
            own: Some((sim, clock)),
            url,
        }
    }

    /// Lets what takes time come to its end. moto's work takes none.
    pub fn settle(&self) {
        if let Some((_, clock)) = &self.own {
            clock.advance(SignedDuration::from_mins(5));
        }
    }

    /// The scene's present moment. moto's is the machine's, of which only the past matters here.
    pub fn long_ago(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    /// From now on no credential of the scene is known.
    pub async fn forget_credentials(&self) {
        match &self.own {
            Some((sim, _)) => sim.add_token("AKIAANOTHER", &["*"]),
            None => post(&self.url, "/moto-api/reset-auth", "0").await,
        }
    }

    /// A text with the scene's names in place of identifiers.
    pub fn named(&self, text: &str) -> String {
        text.replace(self.volume.as_str(), "VOLUME")
            .replace(self.holder.as_str(), "HOLDER")
            .replace(self.other.as_str(), "OTHER")
    }
}

async fn post(url: &str, path: &str, body: &'static str) {
    let answer = reqwest::Client::new().post(format!("{url}{path}")).body(body).send().await;
    assert!(answer.expect("moto answers").status().is_success(), "{path}");
}

/// A moto server on a port of its own. It ends with this value.
pub struct Moto {
    url: String,
    version: String,
    _child: Child,
}

impl Moto {
    /// Starts the server of this virtual environment.
    pub async fn start(folder: &Path) -> Self {
        let server = folder.join("bin/moto_server");
        let mut command = Command::new(&server);
        command.args(["-H", "127.0.0.1", "-p", "0"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let mut child =
            command.spawn().unwrap_or_else(|e| panic!("{} does not start: {e}", server.display()));
        let mut lines = BufReader::new(child.stderr.take().expect("its output")).lines();
        let wait = async {
            while let Some(line) = lines.next_line().await.expect("its output") {
                if let Some((_, address)) = line.split_once("Running on http://") {
                    return format!("http://{}", address.trim());
                }
            }
            panic!("moto ended without saying where it listens")
        };
        // Starting takes seconds, most of them for Python to read its modules from the disk.
        let url = tokio::time::timeout(Duration::from_secs(300), wait).await.expect("moto starts");
        // Its log must be read, or it blocks.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let python = Command::new(folder.join("bin/python"))
            .args(["-c", "import moto; print(moto.__version__)"])
            .output()
            .await
            .expect("its Python");
        let version = String::from_utf8_lossy(&python.stdout).trim().to_owned();
        Self { url, version, _child: child }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A fresh scene in it.
    pub async fn world(&self) -> World {
        post(&self.url, "/moto-api/reset-auth", "1000000").await;
        post(&self.url, "/moto-api/reset", "").await;
        let ec2 = sdk(&self.url);
        let run = ec2
            .run_instances()
            .image_id(IMAGE)
            .min_count(2)
            .max_count(2)
            .instance_type(InstanceType::M5Large)
            .send()
            .await
            .expect("instances");
        let ids: Vec<_> = run.instances().iter().filter_map(|i| i.instance_id()).map(str::to_owned).collect();
        let [holder, other] = &ids[..] else { panic!("{ids:?}") };
        let zone =
            run.instances()[0].placement().and_then(|p| p.availability_zone()).unwrap_or(ZONE).to_owned();
        let mut volumes = Vec::new();
        for instance in [holder, other] {
            let tag = Tag::builder().key("ebs.csi.aws.com/cluster").value("true").build();
            let tags = TagSpecification::builder().resource_type(ResourceType::Volume).tags(tag).build();
            let made = ec2.create_volume().availability_zone(&zone).size(10).tag_specifications(tags);
            let volume = made.send().await.expect("a volume").volume_id.expect("its name");
            let attach = ec2.attach_volume().volume_id(&volume).instance_id(instance).device("/dev/sdf");
            attach.send().await.expect("attached");
            volumes.push(volume);
        }
        World {
            provider: provider(&self.url),
            ec2,
            volume: VolumeId::new(&volumes[0]),
            holder: InstanceId::new(holder),
            other: InstanceId::new(other),
            own: None,
            url: self.url.clone(),
        }
    }
}
