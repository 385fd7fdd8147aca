//! The other end of `image/init`: shell scripts over a virtio port.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long the guest may take to come up, or for one script.
const PATIENCE: Duration = Duration::from_secs(120);

/// A shell in a guest.
#[derive(Debug)]
pub(crate) struct Shell {
    lines: BufReader<UnixStream>,
    asked: u32,
}

/// Result of a script.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) output: String,
}

impl Shell {
    /// Takes over the port of a guest that has just been started, and waits until that is ready.
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut shell = Self {
            lines: BufReader::new(stream),
            asked: 0,
        };
        let line = shell.read().context("the guest does not come up")?;
        if line != "ready" {
            bail!("the guest says {line:?}");
        }
        Ok(shell)
    }

    /// Runs a script to its end.
    pub(crate) fn run(&mut self, script: &str) -> Result<Ran> {
        self.asked += 1;
        let line = format!("{} {}\n", self.asked, encode(script.as_bytes()));
        self.lines.get_mut().write_all(line.as_bytes())?;
        let answer = self
            .read()
            .with_context(|| format!("no end of {script:?}"))?;
        let mut words = answer.split(' ');
        let mut next = || {
            words
                .next()
                .with_context(|| format!("the guest says {answer:?}"))
        };
        let (number, code, output) = (next()?, next()?, next()?);
        if number != self.asked.to_string() {
            bail!("the guest answers {number} and not {}", self.asked);
        }
        let output = String::from_utf8_lossy(&decode(output)?).into_owned();
        Ok(Ran {
            code: code.parse().context("no exit code")?,
            output,
        })
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            bail!("the guest's port is closed");
        }
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    }
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk
            .iter()
            .fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

fn decode(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut number = 0_u32;
        for digit in chunk {
            let value = DIGITS
                .iter()
                .position(|d| d == digit)
                .with_context(|| format!("no base64: {text:?}"))?;
            number = number << 6 | u32::try_from(value)?;
        }
        number <<= 6 * (4 - chunk.len());
        bytes.extend(&number.to_be_bytes()[1..chunk.len()]);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of RFC 4648, section 10.
    #[test]
    fn base64_is_that_of_the_rfc() {
        let examples = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        for (length, text) in examples.iter().enumerate() {
            let bytes = &b"foobar"[..length];
            assert_eq!(encode(bytes), *text);
            assert_eq!(decode(text).expect("base64"), bytes);
        }
        assert!(decode("Zm?v").is_err());
    }
}
