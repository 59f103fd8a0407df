//! Redis servers, sentinels and clusters as children that die with the test.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest wait for a server to do something. Far above what it takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// A redis-server, or a sentinel, with a directory of its own.
pub struct RedisServer {
    pub port: u16,
    dir: TempDir,
    args: Vec<String>,
    program: &'static str,
    child: Option<Child>,
}

/// A port nobody has at the moment.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").port()
}

impl RedisServer {
    /// With the append-only file written through at every command.
    pub fn start() -> RedisServer {
        RedisServer::with(&["--appendonly", "yes", "--appendfsync", "always"])
    }

    /// With these arguments; `DIR` in them is the directory of the server.
    pub fn with(args: &[&str]) -> RedisServer {
        RedisServer::program("redis-server", args)
    }

    /// A sentinel that watches `master` under the name `m`.
    pub fn sentinel(master: u16) -> RedisServer {
        RedisServer::patient_sentinel(master, Duration::from_secs(2))
    }

    /// The same with a time that a failover may take, after which also replicas are put right that follow by another way than the direct one.
    pub fn patient_sentinel(master: u16, failover_time: Duration) -> RedisServer {
        let mut sentinel = RedisServer::unstarted("redis-sentinel", &[]);
        let text = format!(
            "port {}\nbind 127.0.0.1\nsentinel monitor m 127.0.0.1 {master} 1\nsentinel down-after-milliseconds m 500\n\
             sentinel failover-timeout m {}\n",
            sentinel.port,
            failover_time.as_millis()
        );
        let config = sentinel.dir.path().join("sentinel.conf");
        std::fs::write(&config, text).expect("written");
        sentinel.args = vec![config.display().to_string()];
        sentinel.restart();
        sentinel
    }

    fn program(program: &'static str, args: &[&str]) -> RedisServer {
        let mut server = RedisServer::unstarted(program, args);
        server.restart();
        server
    }

    fn unstarted(program: &'static str, args: &[&str]) -> RedisServer {
        let dir = tempfile::Builder::new().prefix("pando-redis-").tempdir().expect("a temporary directory");
        let port = free_port();
        let mut all = vec!["--port".to_string(), port.to_string(), "--bind".into(), "127.0.0.1".into(), "--save".into(), String::new()];
        all.extend(["--dir".into(), dir.path().display().to_string(), "--enable-debug-command".into(), "yes".into()]);
        all.extend(args.iter().map(|arg| arg.replace("DIR", &dir.path().display().to_string())));
        RedisServer { port, dir, args: all, program, child: None }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// `redis://…` of database `db`.
    pub fn url(&self, db: u32) -> String {
        format!("redis://127.0.0.1:{}/{db}", self.port)
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it (again) with the same files.
    pub fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let spawned = command.spawn();
        self.child = Some(spawned.unwrap_or_else(|e| panic!("{}: {e}; install it with: cargo xtask setup", self.program)));
        let address = self.address();
        wait_until("the server listens", || TcpStream::connect(address).is_ok());
    }

    /// Runs redis-cli against it; its output.
    pub fn cli(&self, args: &[&str]) -> String {
        let output = Command::new("redis-cli").arg("-p").arg(self.port.to_string()).args(args).output().expect("redis-cli runs");
        text(&output)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Three nodes that form a cluster.
pub fn cluster() -> Vec<RedisServer> {
    let nodes: Vec<RedisServer> = (0..3)
        .map(|_| {
            // The bus usually is 10,000 ports higher, which may not exist.
            let bus = free_port().to_string();
            RedisServer::with(&["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "2000"])
        })
        .collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(nodes.iter().map(|node| node.address().to_string()));
    let output = create.args(["--cluster-replicas", "0", "--cluster-yes"]).output().expect("redis-cli runs");
    assert!(output.status.success(), "{}", text(&output));
    for node in &nodes {
        wait_until("the cluster is whole", || node.cli(&["cluster", "info"]).contains("cluster_state:ok"));
    }
    nodes
}

/// A certificate authority and a certificate of `localhost` and `127.0.0.1`, all in `dir`: `ca.crt`, `redis.crt`, `redis.key`.
pub fn certificates(dir: &Path) -> [PathBuf; 3] {
    let path = |name: &str| dir.join(name);
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(dir).output().expect("openssl runs");
        assert!(output.status.success(), "{}", text(&output));
    };
    let subject = |name: &str| format!("/CN={name}");
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        &subject("test ca"),
    ]);
    openssl(&["req", "-newkey", "rsa:2048", "-nodes", "-keyout", "redis.key", "-out", "redis.csr", "-subj", &subject("localhost")]);
    std::fs::write(path("ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").expect("written");
    openssl(&[
        "x509",
        "-req",
        "-in",
        "redis.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "ext",
        "-out",
        "redis.crt",
    ]);
    [path("ca.crt"), path("redis.crt"), path("redis.key")]
}

/// Looks until it is so.
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
