//! The simulator as a process: its first line of output, and the addresses that it refuses.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

fn simulator() -> Command {
    Command::new(env!("CARGO_BIN_EXE_reattach-cloud-simulator"))
}

#[test]
fn the_first_line_is_the_url_of_the_api() {
    let mut child = simulator()
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("its output"))
        .read_line(&mut line)
        .expect("a line");
    let address = line
        .trim()
        .strip_prefix("http://")
        .expect("a URL")
        .to_owned();
    let mut socket = TcpStream::connect(&address).expect("a connection");
    let request = "GET /control/volumes HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    socket.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    child.kill().expect("stopped");
    child.wait().expect("ended");
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("[]"),
        "{answer}"
    );
}

#[test]
fn a_non_loopback_address_needs_a_flag() {
    let output = simulator()
        .args(["--listen", "0.0.0.0:0"])
        .output()
        .expect("a process");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("--allow-non-loopback") && output.stdout.is_empty(),
        "{text}"
    );
}
