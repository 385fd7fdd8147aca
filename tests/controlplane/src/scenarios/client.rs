//! A test process that has its scenario run by the host.

use super::{Frame, HOST, Scenario};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tokio::time::Instant;

/// How long a host may take to listen: its predecessor first stops some control planes.
const START: Duration = Duration::from_secs(60);
/// Pause between two attempts to connect.
const LOOK: Duration = Duration::from_millis(50);
/// How many hosts may end between the connection and the scenario.
const TRIES: usize = 5;

/// Where a host listens.
pub(super) fn socket(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.socket"))
}

/// Runs a scenario in the host and prints its output.
pub(super) fn run(folder: &Path, name: &str, scenario: Scenario) -> Result<(), String> {
    for _ in 0..TRIES {
        let mut host = connect(folder, name)?;
        if writeln!(host, "{}", scenario.name).is_err() {
            continue;
        }
        let mut begun = false;
        for line in BufReader::new(host).lines().map_while(Result::ok) {
            match serde_json::from_str(&line)
                .map_err(|e| format!("the host answers {line:?}: {e}"))?
            {
                Frame::Begun => begun = true,
                Frame::Said(line) => println!("{line}"),
                Frame::Ended(None) => return Ok(()),
                Frame::Ended(Some(why)) => return Err(why),
            }
        }
        if begun {
            let log = log(folder, name);
            return Err(format!(
                "the host ended in the middle of the scenario; its log is {}",
                log.display()
            ));
        }
    }
    Err(format!(
        "{TRIES} hosts ended before they took the scenario; see {}",
        log(folder, name).display()
    ))
}

fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// Connects to the host, and starts one where none listens.
fn connect(folder: &Path, name: &str) -> Result<UnixStream, String> {
    let cannot =
        |what: &str, e: std::io::Error| format!("cannot {what} in {}: {e}", folder.display());
    let socket = socket(folder, name);
    if let Ok(host) = UnixStream::connect(&socket) {
        return Ok(host);
    }
    // One starts a host, the others wait for it.
    let turn =
        File::create(folder.join(format!("{name}.turn"))).map_err(|e| cannot("make a file", e))?;
    turn.lock().map_err(|e| cannot("lock a file", e))?;
    if let Ok(host) = UnixStream::connect(&socket) {
        return Ok(host);
    }
    let output = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log(folder, name));
    let output = output.map_err(|e| cannot("make a log", e))?;
    let errors = output.try_clone().map_err(|e| cannot("open the log", e))?;
    let binary = std::env::current_exe().map_err(|e| cannot("find this test's binary", e))?;
    let mut host = Command::new(binary)
        .arg(HOST)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(errors)
        // Neither Ctrl-C nor the end of this test's process group is meant for it.
        .process_group(0)
        .spawn()
        .map_err(|e| cannot("start the host", e))?;
    let end = Instant::now() + START;
    loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => return Ok(stream),
            Err(e) if Instant::now() >= end => return Err(cannot("reach the host", e)),
            Err(_) => {}
        }
        if let Ok(Some(status)) = host.try_wait() {
            return Err(format!(
                "the host ended with {status}; see {}",
                log(folder, name).display()
            ));
        }
        sleep(LOOK);
    }
}
