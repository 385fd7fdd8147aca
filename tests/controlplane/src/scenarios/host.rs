//! The process that runs the shared scenarios.

use super::{Frame, Output, RUNTIME, Run, Scenario};
use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{Sender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How long the host waits for another scenario.
pub(super) const LINGER: Duration = Duration::from_secs(15);
/// Pause between two looks at the file `stop` and at the time.
const LOOK: Duration = Duration::from_millis(250);

/// Serves until there is nothing left to do.
pub(super) fn serve(
    folder: &Path,
    name: &str,
    scenarios: &'static [Scenario],
    end: fn() -> Run,
) -> ExitCode {
    match RUNTIME.block_on(listen(folder, name, scenarios, end)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scenario host {name}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn listen(
    folder: &Path,
    name: &str,
    scenarios: &'static [Scenario],
    end: fn() -> Run,
) -> io::Result<()> {
    // Held to the end of the process: a successor begins when this host's control planes are gone.
    let lock = File::create(folder.join(format!("{name}.lock")))?;
    lock.lock()?;
    let pid = folder.join(format!("{name}.pid"));
    fs::write(&pid, std::process::id().to_string())?;
    let socket = super::client::socket(folder, name);
    if socket.exists() {
        fs::remove_file(&socket)?;
    }
    let listener = UnixListener::bind(&socket)?;
    let stop = folder.join("stop");
    let mut clients = JoinSet::new();
    // Each scenario's thread has a sender as long as it lives.
    let (alive, mut all_ended) = channel(1);
    let mut busy = Instant::now();
    while !stop.exists() && (!clients.is_empty() || busy.elapsed() < LINGER) {
        if !clients.is_empty() {
            busy = Instant::now();
        }
        tokio::select! {
            accepted = listener.accept() => {
                clients.spawn(attend(accepted?.0, scenarios, alive.clone()));
            }
            Some(_) = clients.join_next() => {}
            () = sleep(LOOK) => {}
        }
    }
    // Before the control planes stop: a client that connects from now on must start another host.
    fs::remove_file(&socket)?;
    drop(listener);
    clients.shutdown().await;
    drop(alive);
    all_ended.recv().await;
    end().await;
    fs::remove_file(&pid)
}

/// Runs the scenario that a client names. An error says that the client is gone.
async fn attend(
    client: UnixStream,
    scenarios: &'static [Scenario],
    alive: Sender<Infallible>,
) -> io::Result<()> {
    let (reader, mut writer) = client.into_split();
    let mut reader = BufReader::new(reader);
    let mut name = String::new();
    reader.read_line(&mut name).await?;
    let Some(scenario) = scenarios.iter().find(|s| s.name == name.trim_end()) else {
        let why = format!("there is no scenario {:?}", name.trim_end());
        return send(&mut writer, &Frame::Ended(Some(why))).await;
    };
    send(&mut writer, &Frame::Begun).await?;
    let (say, mut lines) = unbounded_channel();
    let (end, mut ended) = oneshot::channel();
    // Dropped when the client is gone or the host stops.
    let (_stay, cancelled) = oneshot::channel::<Infallible>();
    let scenario = *scenario;
    let run = move || {
        let cancelled = async { _ = cancelled.await };
        // It fails only where the scenario was cancelled.
        _ = end.send(super::run(scenario, Output::Client(say), cancelled));
        drop(alive);
    };
    std::thread::Builder::new()
        .name(scenario.name.to_owned())
        .spawn(run)?;
    let mut gone = pin!(gone(reader));
    let ended = loop {
        tokio::select! {
            ended = &mut ended => break ended.unwrap_or_else(|_| Err("its thread is gone".to_owned())),
            Some(line) = lines.recv() => send(&mut writer, &Frame::Said(line)).await?,
            () = &mut gone => return Ok(()),
        }
    };
    while let Ok(line) = lines.try_recv() {
        send(&mut writer, &Frame::Said(line)).await?;
    }
    println!(
        "{}: {}",
        scenario.name,
        ended.as_ref().err().map_or("ok", String::as_str)
    );
    send(&mut writer, &Frame::Ended(ended.err())).await
}

/// Resolves when the client has closed its end.
async fn gone(mut reader: BufReader<OwnedReadHalf>) {
    let mut rest = [0; 64];
    while reader.read(&mut rest).await.is_ok_and(|n| n > 0) {}
}

async fn send(writer: &mut OwnedWriteHalf, frame: &Frame) -> io::Result<()> {
    let mut line = serde_json::to_vec(frame)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
