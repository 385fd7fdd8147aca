//! A setup in one of the two simulators: a volume on one of two instances, and a second volume on the other instance.

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

/// Identifier of an image that moto has.
const IMAGE: &str = "ami-12c6146b";

/// A setup in one simulator.
pub struct World {
    /// Provider over the simulator.
    pub provider: AwsProvider,
    /// SDK client without retries, for requests that the provider never sends.
    pub ec2: Ec2,
    /// Volume that is attached to [`World::holder`].
    pub volume: VolumeId,
    /// Instance that has the volume.
    pub holder: InstanceId,
    /// Instance that has the second volume, under the device name of the first one.
    pub other: InstanceId,
    /// The simulated cloud. `None`: moto.
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
    /// Makes a setup in this project's own simulator, served on its own socket.
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

    /// Waits until all jobs have ended. Those of moto take no time.
    pub fn settle(&self) {
        if let Some((_, clock)) = &self.own {
            clock.advance(SignedDuration::from_mins(5));
        }
    }

    /// Returns the present time of the simulator. moto uses the machine's clock.
    pub fn long_ago(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    /// Makes the credentials of the setup unknown from now on.
    pub async fn forget_credentials(&self) {
        match &self.own {
            Some((sim, _)) => sim.add_token("AKIAANOTHER", &["*"]),
            None => post(&self.url, "/moto-api/reset-auth", "0").await,
        }
    }

    /// Replaces identifiers in a text by the names of the setup.
    pub fn named(&self, text: &str) -> String {
        text.replace(self.volume.as_str(), "VOLUME")
            .replace(self.holder.as_str(), "HOLDER")
            .replace(self.other.as_str(), "OTHER")
    }
}

async fn post(url: &str, path: &str, body: &'static str) {
    let answer = reqwest::Client::new()
        .post(format!("{url}{path}"))
        .body(body)
        .send()
        .await;
    assert!(
        answer.expect("moto answers").status().is_success(),
        "{path}"
    );
}

/// A moto server on its own port. Dropping the value ends it.
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
        command
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", server.display()));
        let mut lines = BufReader::new(child.stderr.take().expect("its output")).lines();
        let wait = async {
            while let Some(line) = lines.next_line().await.expect("its output") {
                if let Some((_, address)) = line.split_once("Running on http://") {
                    return format!("http://{}", address.trim());
                }
            }
            panic!("moto ended without saying where it listens")
        };
        // The start takes seconds, mostly for Python to read its modules from the disk.
        let url = tokio::time::timeout(Duration::from_secs(300), wait)
            .await
            .expect("moto starts");
        // The server blocks when its log is not read.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let python = Command::new(folder.join("bin/python"))
            .args(["-c", "import moto; print(moto.__version__)"])
            .output()
            .await
            .expect("its Python");
        let version = String::from_utf8_lossy(&python.stdout).trim().to_owned();
        Self {
            url,
            version,
            _child: child,
        }
    }

    /// Version of moto.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Makes a new setup in the server.
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
        let ids: Vec<_> = run
            .instances()
            .iter()
            .filter_map(|i| i.instance_id())
            .map(str::to_owned)
            .collect();
        let [holder, other] = &ids[..] else {
            panic!("{ids:?}")
        };
        let zone = run.instances()[0]
            .placement()
            .and_then(|p| p.availability_zone())
            .unwrap_or(ZONE)
            .to_owned();
        let mut volumes = Vec::new();
        for instance in [holder, other] {
            let tag = Tag::builder()
                .key("ebs.csi.aws.com/cluster")
                .value("true")
                .build();
            let tags = TagSpecification::builder()
                .resource_type(ResourceType::Volume)
                .tags(tag)
                .build();
            let made = ec2
                .create_volume()
                .availability_zone(&zone)
                .size(10)
                .tag_specifications(tags);
            let volume = made
                .send()
                .await
                .expect("a volume")
                .volume_id
                .expect("its name");
            let attach = ec2
                .attach_volume()
                .volume_id(&volume)
                .instance_id(instance)
                .device("/dev/sdf");
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
