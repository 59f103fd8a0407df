//! Metrics of a real mount, as Prometheus fetches them.

use crate::servers::free_port;
use crate::support::{Mount, Volume};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

fn ask(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    stream.write_all(request.as_bytes()).expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    answer
}

/// The value of a series that has all these labels.
fn value(page: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let line =
        page.lines().find(|line| line.starts_with(&format!("juicefs_{name}{{")) && labels.iter().all(|label| line.contains(label)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn metrics_tell_what_a_mount_does() {
    let volume = Volume::new();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mount = volume.mount_at("mnt", &["--metrics", &address, "--custom-labels", "team:blue"]);
    fs::write(mount.join("f"), vec![7; 300_000]).expect("written");
    assert_eq!(fs::read(mount.join("f")).expect("read").len(), 300_000);
    assert!(fs::metadata(mount.join("missing")).is_err());
    let answer = ask(port, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, page) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
    let at = format!("mp=\"{}\"", mount.path.display());
    let get = |name: &str, labels: &[&str]| {
        let labels = [labels, &[at.as_str(), "vol_name=\"volume\"", "team=\"blue\""]].concat();
        value(page, name, &labels).unwrap_or_else(|| panic!("{name} {labels:?} is missing in {page}"))
    };
    assert!(get("fuse_ops_total", &["method=\"write\""]) >= 1.0);
    assert!(get("fuse_ops_total", &["method=\"lookup\""]) >= 1.0);
    assert!(get("fuse_written_size_bytes_sum", &[]) >= 300_000.0);
    assert!(get("object_request_data_bytes", &["method=\"PUT\""]) >= 300_000.0);
    assert!(get("transaction_durations_histogram_seconds_count", &[]) >= 1.0);
    assert!(get("used_space", &[]) >= 300_000.0 && get("used_inodes", &[]) >= 1.0);
    assert!(get("memory", &[]) > 1e6 && get("uptime", &[]) > 0.0);
    assert_eq!(get("object_request_errors", &[]), 0.0);
    assert!(ask(port, "GET / HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask(port, "POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 405"));
    // Garbage costs its sender the connection.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("somebody listens");
    let sent = stream.write_all(&[b'x'; 9000]);
    let mut answer = Vec::new();
    let ended = stream.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{sent:?} {ended:?} {answer:?}");
    // One address serves one mount; the other one works without.
    let log_path = volume.temp.path().join("log");
    let log = Stdio::from(File::create(&log_path).expect("made"));
    let second = Mount::start_logging(&volume.dir(), &volume.temp.path().join("second"), &["--metrics", &address], log);
    assert_eq!(fs::read(second.join("f")).expect("read").len(), 300_000);
    assert!(fs::read_to_string(&log_path).expect("read").contains("there are no metrics: cannot listen on"));
    second.unmount();
    mount.unmount();
}
