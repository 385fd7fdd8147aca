//! Gives machines the block devices that the simulated cloud says their guests have.

use crate::machine::Machine;
use crate::sweep::VOLUME;
use crate::tools::{Tools, run};
use anyhow::{Context, Result};
use reattach_cloud_simulator::{CloudSim, InstanceNo, InstanceStatus, VolumeNo};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often the cloud is asked what its guests have.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a volume's file; what the cloud says of its size does not matter here.
const SIZE: u64 = 64 << 20;

/// A volume's device in one guest.
#[derive(Clone, Debug)]
struct Plugged {
    /// Kernel name, e.g. `loop3`.
    name: String,
    /// `MAJ:MIN`.
    number: String,
    label: String,
    /// Loop devices over this device: kubelet makes one for a raw block volume.
    above: BTreeSet<String>,
}

/// Machines as the hypervisor knows them.
type Guests = Arc<Mutex<Vec<Arc<Mutex<Machine>>>>>;

/// The hypervisor. Devices that are left go when it is dropped, so drop it after the machines.
pub struct Hypervisor {
    inner: Arc<Inner>,
    guests: Guests,
    task: tokio::task::JoinHandle<()>,
}

struct Inner {
    cloud: CloudSim,
    tools: Arc<Tools>,
    /// Where the volumes' files are.
    folder: PathBuf,
    plugged: Mutex<BTreeMap<(InstanceNo, VolumeNo), Plugged>>,
}

impl Hypervisor {
    /// Starts to follow the cloud; volumes' files are made in `folder`. Needs a running tokio runtime.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn start(cloud: CloudSim, tools: Arc<Tools>, folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder)?;
        let inner = Arc::new(Inner {
            cloud,
            tools,
            folder,
            plugged: Mutex::default(),
        });
        let guests = Guests::default();
        let (of_task, machines) = (inner.clone(), guests.clone());
        let task = tokio::spawn(async move {
            loop {
                let (inner, machines) = (of_task.clone(), machines.clone());
                let followed = tokio::task::spawn_blocking(move || {
                    for machine in lock(&machines).clone() {
                        let mut machine = lock(&machine);
                        if let Err(e) = inner
                            .cut(&mut machine)
                            .and_then(|()| inner.follow(&machine))
                        {
                            eprintln!("hypervisor: {}: {e:#}", machine.name());
                        }
                    }
                });
                let _ = followed.await;
                tokio::time::sleep(LOOK).await;
            }
        });
        Ok(Self {
            inner,
            guests,
            task,
        })
    }

    /// From now on the machine gets its devices.
    pub fn adopt(&self, machine: Arc<Mutex<Machine>>) {
        lock(&self.guests).push(machine);
    }

    /// The kernel name of a volume's device in a guest, e.g. `loop3`; none while it has none.
    pub fn device(&self, instance: u64, volume: VolumeNo) -> Option<String> {
        lock(&self.inner.plugged)
            .get(&(InstanceNo(instance), volume))
            .map(|p| p.name.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    /// Cuts the power of machines that the cloud has shut down.
    fn cut(&self, machine: &mut Machine) -> Result<()> {
        let instance = self.cloud.instance(InstanceNo(machine.instance()));
        if machine.is_on() && instance.is_some_and(|i| i.status == InstanceStatus::Offline) {
            machine.power_off()?;
        }
        Ok(())
    }

    /// Brings one guest's devices in line with the cloud, and tells the cloud which of them are mounted.
    fn follow(&self, machine: &Machine) -> Result<()> {
        let instance = InstanceNo(machine.instance());
        let wanted: BTreeSet<VolumeNo> = match machine.is_on() {
            true => self.cloud.guest_devices(instance).into_iter().collect(),
            false => BTreeSet::new(),
        };
        let mut plugged = lock(&self.plugged);
        let here = |key: &&(InstanceNo, VolumeNo)| key.0 == instance;
        let gone: Vec<_> = plugged
            .keys()
            .filter(here)
            .filter(|key| !wanted.contains(&key.1))
            .copied()
            .collect();
        for key in gone {
            if let Some(device) = plugged.remove(&key) {
                self.unplug(machine, &device)?;
            }
        }
        for volume in wanted {
            if let std::collections::btree_map::Entry::Vacant(free) =
                plugged.entry((instance, volume))
            {
                free.insert(self.plug(machine, volume)?);
            }
        }
        let table = machine.mount_table();
        for ((_, volume), device) in plugged.iter_mut().filter(|(key, _)| key.0 == instance) {
            self.show_above(machine, device)?;
            let mounted = |line: &str| {
                let mut fields = line.split(' ').skip(2);
                fields.next() == Some(&device.number)
                    || fields.next() == Some(&format!("/{}", device.name))
            };
            self.cloud
                .set_in_use(instance, *volume, table.lines().any(mounted));
        }
        Ok(())
    }

    /// Shows the agent the loop devices over a volume's device as they are.
    fn show_above(&self, machine: &Machine, device: &mut Plugged) -> Result<()> {
        let Ok(root) = machine.inside("/") else {
            return Ok(());
        };
        let above: BTreeSet<String> = bound_loops()?
            .into_iter()
            .filter(|(_, file)| {
                let found = fs::metadata(root.join(file.trim_start_matches('/')));
                found.is_ok_and(|f| {
                    f.file_type().is_block_device() && number(f.rdev()) == device.number
                })
            })
            .map(|(name, _)| name)
            .collect();
        let shown = machine.path("sys/block");
        for name in device.above.difference(&above) {
            fs::remove_file(shown.join(name))?;
        }
        for name in above.difference(&device.above) {
            symlink(Path::new("/sys/block").join(name), shown.join(name))?;
        }
        device.above = above;
        Ok(())
    }

    fn plug(&self, machine: &Machine, volume: VolumeNo) -> Result<Plugged> {
        let label = self
            .cloud
            .volume(volume)
            .context("a volume of the cloud")?
            .label;
        let file = self
            .folder
            .join(format!("{label}.{}{VOLUME}", std::process::id()));
        fs::File::options()
            .create(true)
            .append(true)
            .open(&file)?
            .set_len(SIZE)?;
        let device = run(
            "losetup",
            &["--find", "--show", &file.display().to_string()],
        )?;
        let name = device.rsplit('/').next().unwrap_or_default().to_owned();
        let real = Path::new("/sys/block").join(&name);
        let number = fs::read_to_string(real.join("dev"))?.trim().to_owned();
        // First what the kernel shows, then what udev makes of it.
        let shown = machine.path("sys/block");
        let hidden = machine.path("sys").join(&name);
        let _ = fs::remove_dir_all(&hidden);
        fs::create_dir_all(hidden.join("device"))?;
        for part in fs::read_dir(&real)? {
            let part = part?.file_name();
            symlink(real.join(&part), hidden.join(part))?;
        }
        fs::write(hidden.join("device/vpd_pg83"), page_83(&label)?)?;
        fs::rename(&hidden, shown.join(&name))?;
        symlink(
            format!("../../block/{name}"),
            machine.path("sys/dev-block").join(&number),
        )?;
        symlink(&device, machine.path("by-id").join(link(&label)))?;
        Ok(Plugged {
            name,
            number,
            label,
            above: BTreeSet::new(),
        })
    }

    /// As a forced detach: users of the device keep a dead one.
    fn unplug(&self, machine: &Machine, device: &Plugged) -> Result<()> {
        let (shown, hidden) = (
            machine.path("sys/block").join(&device.name),
            machine.path("sys").join(&device.name),
        );
        fs::remove_file(machine.path("by-id").join(link(&device.label)))?;
        fs::remove_file(machine.path("sys/dev-block").join(&device.number))?;
        fs::rename(&shown, &hidden)?;
        fs::remove_dir_all(&hidden)?;
        for name in &device.above {
            fs::remove_file(machine.path("sys/block").join(name))?;
        }
        self.release(device, machine.is_on())
    }

    /// Takes the device from the kernel. What kubelet put above it goes with the machine.
    fn release(&self, device: &Plugged, is_on: bool) -> Result<()> {
        if !is_on {
            for name in &device.above {
                run("losetup", &["--detach", &format!("/dev/{name}")])?;
            }
        }
        let node = format!("/dev/{}", device.name);
        // It also makes the device go with its last user, which may be this very call.
        run(self.tools.path("unplug"), &[&node]).map(|_| ())
    }
}

impl Drop for Hypervisor {
    fn drop(&mut self) {
        self.task.abort();
        for machine in lock(&self.guests).iter() {
            if let Err(e) = lock(machine).power_off() {
                eprintln!("hypervisor: {e:#}");
            }
        }
        for device in lock(&self.inner.plugged).values() {
            // Bound devices only: an error says that it went already.
            let _ = self.inner.release(device, false);
        }
    }
}

/// Every bound loop device with its backing file, as spelt when it was bound.
fn bound_loops() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        if let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) {
            found.push((
                entry.file_name().to_string_lossy().into_owned(),
                file.trim_end().to_owned(),
            ));
        }
    }
    Ok(found)
}

/// `MAJ:MIN` of a device number.
fn number(dev: u64) -> String {
    format!("{}:{}", rustix::fs::major(dev), rustix::fs::minor(dev))
}

/// The link that udev makes on a Linode.
fn link(label: &str) -> String {
    format!("scsi-0Linode_Volume_{label}")
}

/// SCSI page 0x83 (SPC-4 7.8.5) as a Linode volume has it: one designator of type 0 (vendor specific), ASCII, the label.
fn page_83(label: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(label.len())?;
    let mut page = vec![0x00, 0x83];
    page.extend((u16::from(length) + 4).to_be_bytes());
    page.extend([0x02, 0x00, 0x00, length]);
    page.extend(label.bytes());
    Ok(page)
}
