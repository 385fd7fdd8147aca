//! The answers of an API server that one agent needs, over loopback. It has no timers, so that all wake-ups of the agent are
//! its own.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The report and the requests.
#[derive(Default)]
pub struct Seen {
    pub report: Value,
    pub writes: usize,
    pub watches: Vec<TcpStream>,
}

pub struct Api {
    pub url: String,
    pub seen: Arc<Mutex<Seen>>,
}

impl Api {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Seen {
            report: report(1, &Value::Null),
            ..Seen::default()
        }));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, shared) = (stream.unwrap(), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { url, seen }
    }

    /// Returns a kubeconfig for this server.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            clusters: [{{name: c, cluster: {{server: '{}'}}}}]\n\
            users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.url
        )
    }

    pub fn writes(&self) -> usize {
        self.seen.lock().unwrap().writes
    }

    /// Returns the number of writes whose inventory contains this text, or does not.
    pub fn says(&self, text: &str) -> bool {
        self.seen.lock().unwrap().report["status"]
            .to_string()
            .contains(text)
    }
}

fn report(version: usize, status: &Value) -> Value {
    json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport",
        "metadata": { "name": "n1", "uid": "u1", "generation": 1, "resourceVersion": version.to_string() },
        "spec": { "challenges": [] }, "status": status,
    })
}

fn serve(stream: TcpStream, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or_default() == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut seen = seen.lock().unwrap();
        let answer = if first.contains("watch=") {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            writer.write_all(head.as_bytes()).unwrap();
            seen.watches.push(writer.try_clone().unwrap());
            continue;
        } else if first.starts_with("PATCH") {
            let patch: Value = serde_json::from_slice(&body).unwrap();
            seen.writes += 1;
            seen.report = report(seen.writes + 1, &patch["status"]);
            seen.report.clone()
        } else {
            let items = [seen.report.clone()];
            json!({
                "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReportList",
                "metadata": { "resourceVersion": "1" }, "items": items,
            })
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        writer.write_all((head + &answer).as_bytes()).unwrap();
    }
}
