//! QEMU's machine protocol: one JSON object per line.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer or an event may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    lines: BufReader<UnixStream>,
    /// Events that were not awaited yet.
    events: Vec<Value>,
}

impl Qmp {
    /// Takes over a connection that was just made.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self {
            lines: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and gives what it returns.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.lines.get_mut(), "{line}").with_context(|| command.to_owned())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                bail!("{line}: {error}");
            }
            if answer.get("return").is_some() {
                return Ok(answer["return"].take());
            }
            self.events.push(answer);
        }
    }

    /// Waits until QEMU reports that the guest has released a device.
    pub(crate) fn await_deleted(&mut self, device: &str) -> Result<()> {
        loop {
            let is_it = |e: &Value| e["event"] == "DEVICE_DELETED" && e["data"]["device"] == device;
            if let Some(place) = self.events.iter().position(is_it) {
                self.events.remove(place);
                return Ok(());
            }
            let event = self
                .read()
                .with_context(|| format!("the guest keeps {device}"))?;
            self.events.push(event);
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self
            .lines
            .read_line(&mut line)
            .context("QEMU does not answer")?
            == 0
        {
            bail!("QEMU has closed the connection");
        }
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}
