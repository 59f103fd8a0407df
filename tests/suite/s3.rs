//! Volumes whose objects are in a bucket of an S3 server.

use crate::proxy::Proxy;
use crate::s3_server::{ACCESS_KEY, Answer, Fault, SECRET_KEY, Server};
use crate::servers::{RedisServer, free_port};
use crate::support::{Dice, Mount, PANDO, Volume, die_with_parent, eventually, is_mounted, run, sh, size, text, worker, worker_arg};
use pando::meta::key;
use pando::meta::setting::Setting;
use pando::meta::store::embedded::EmbeddedStore;
use pando::meta::store::{Query, Store, Value, Write};
use pando::object::s3::{Flavor, S3Config, S3Store};
use pando::object::{ObjectStore, conformance};
use pando::volume::{MetaUrl, NewVolume, VolumeError, create};
use serde_json::json;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server whose buckets are directories beside the volume.
pub fn server(volume: &Volume) -> Server {
    let root = volume.temp.path().join("s3");
    fs::create_dir_all(&root).expect("made");
    Server::start(&root)
}

pub fn wanted(storage: &str, bucket: &str) -> NewVolume {
    NewVolume {
        name: "vol".into(),
        storage: Some(storage.into()),
        bucket: Some(bucket.into()),
        access_key: Some(ACCESS_KEY.into()),
        secret_key: Some(SECRET_KEY.into()),
        ..NewVolume::default()
    }
}

pub fn make(dir: PathBuf, wanted: &NewVolume) -> Result<(), VolumeError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(create(&MetaUrl::Embedded(dir), wanted)).map(|_| ())
}

/// Names of the files below a directory.
fn files(dir: &Path) -> Vec<String> {
    let output = run(Command::new("find").args([dir.as_os_str(), "-type".as_ref(), "f".as_ref()]));
    let mut names: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn a_volume_in_a_bucket() {
    let volume = Volume::new();
    let server = server(&volume);
    // The bucket is not there yet: it is made.
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let bucket = volume.temp.path().join("s3/data/vol");
    assert_eq!(fs::read_to_string(bucket.join("juicefs_uuid")).expect("there").len(), 36);
    assert_eq!(files(&bucket).len(), 1, "nothing is left of the test: {:?}", files(&bucket));
    let content = Dice::new(7).bytes(10 << 20);
    let mount = uncached(&volume);
    server.fail_next("PUT", Fault::Answer(Answer::error(503, "SlowDown")));
    fs::write(mount.join("big"), &content).expect("written");
    fs::write(mount.join("small"), "a few bytes").expect("written");
    mount.unmount();
    assert_eq!(files(&bucket.join("chunks")).len(), 3, "{:?}", files(&bucket));
    let mount = uncached(&volume);
    for fault in [Fault::Answer(Answer::error(500, "InternalError")), Fault::Cut, Fault::Flip] {
        server.fail_next("GET", fault);
    }
    assert!(fs::read(mount.join("big")).expect("read") == content, "other bytes came back");
    assert_eq!(fs::read_to_string(mount.join("small")).expect("read"), "a few bytes");
    volume.assert_clean();
    fs::remove_file(mount.join("big")).expect("removed");
    eventually("the objects are deleted", || files(&bucket.join("chunks")).is_empty());
    mount.unmount();
    volume.assert_clean();
}

/// Without a cache on disk: what is read comes from the bucket.
fn uncached(volume: &Volume) -> Mount {
    volume.mount_at("mnt", &["--cache-size", "0"])
}

#[test]
fn blocks_on_disk_outlive_the_mount_and_the_bucket() {
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let cache = volume.temp.path().join("cache").to_string_lossy().into_owned();
    let options = ["--cache-dir", cache.as_str()];
    let content = Dice::new(11).bytes(300_000);
    let mount = volume.mount_at("mnt", &options);
    fs::write(mount.join("f"), &content).expect("written");
    mount.unmount();
    let bucket = volume.temp.path().join("s3/data/vol/chunks");
    let objects = files(&bucket);
    let mount = volume.mount_at("mnt", &options);
    assert!(fs::read(mount.join("f")).expect("read") == content, "other bytes came back");
    eventually("the block is on the disk", || files(Path::new(&cache)).iter().any(|file| file.contains("raw/chunks")));
    mount.unmount();
    for object in &objects {
        fs::remove_file(object).expect("removed");
    }
    let mount = volume.mount_at("mnt", &options);
    assert!(fs::read(mount.join("f")).expect("read from the disk") == content, "other bytes came back");
    mount.unmount();
    let mount = uncached(&volume);
    assert_eq!(fs::read(mount.join("f")).expect_err("it is gone").raw_os_error(), Some(libc::EIO));
    mount.unmount();
}

#[test]
fn damaged_objects_are_errors() {
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let mount = uncached(&volume);
    fs::write(mount.join("f"), Dice::new(9).bytes(300_000)).expect("written");
    mount.unmount();
    let objects = files(&volume.temp.path().join("s3/data/vol/chunks"));
    let [object] = &objects[..] else { panic!("{objects:?}") };
    let mut bytes = fs::read(object).expect("read");
    bytes[150_000] ^= 1;
    fs::write(object, bytes).expect("damaged");
    let mount = uncached(&volume);
    let error = fs::read(mount.join("f")).map(|bytes| bytes.len()).expect_err("damaged");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    mount.unmount();
}

#[test]
fn a_bucket_that_is_away_is_waited_for_unless_retries_are_bounded() {
    let volume = Volume::new();
    let server = server(&volume);
    let proxy = Proxy::start(server.addr());
    make(volume.dir(), &wanted("s3", &format!("http://127.0.0.1:{}/data", proxy.port))).expect("made");
    let content = Dice::new(13).bytes(300_000);
    let mount = uncached(&volume);
    fs::write(mount.join("f"), &content).expect("written");
    mount.unmount();
    for bounded in [false, true] {
        let options: &[&str] = if bounded { &["--cache-size", "0", "--io-retries", "2"] } else { &["--cache-size", "0"] };
        let mount = volume.mount_at("mnt", options);
        proxy.refuse(true);
        proxy.cut();
        let (read, written) = (mount.join("f"), mount.join(if bounded { "g" } else { "h" }));
        let data = content.clone();
        let store = move || -> io::Result<()> {
            let mut file = fs::File::create(&written)?;
            file.write_all(&data)?;
            file.sync_all()
        };
        let users = std::thread::spawn(move || (fs::read(&read), store()));
        if !bounded {
            std::thread::sleep(Duration::from_secs(2));
            assert!(!users.is_finished(), "nobody is told an error");
            proxy.refuse(false);
        }
        let (read, written) = users.join().expect("no panic");
        if bounded {
            assert_eq!(read.expect_err("away").raw_os_error(), Some(libc::EIO));
            assert_eq!(written.expect_err("away").raw_os_error(), Some(libc::EIO));
            proxy.refuse(false);
        } else {
            assert!(read.expect("read") == content, "other bytes came back");
            written.expect("written");
            assert!(fs::read(mount.join("h")).expect("read") == content, "other bytes came back");
        }
        mount.unmount();
    }
    volume.assert_clean();
}

#[test]
fn a_random_read_asks_for_a_part_and_then_the_block_is_fetched() {
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let content = Dice::new(14).bytes(12 << 20);
    let mount = uncached(&volume);
    fs::write(mount.join("f"), &content).expect("written");
    mount.unmount();
    let cache = volume.temp.path().join("cache").to_string_lossy().into_owned();
    // Of each request whether it asked for a range.
    let gets = |server: &Server| -> Vec<bool> {
        server.take_asked().iter().filter(|asked| asked.method == "GET").map(|asked| asked.headers.contains_key("range")).collect()
    };
    for prefetch in ["0", "1"] {
        let mount = volume.mount_at("mnt", &["--cache-dir", &cache, "--prefetch", prefetch]);
        let file = fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.join("f")).expect("opened");
        gets(&server);
        let mut page = Aligned([0; 4096]);
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut page.0, 5 << 20).expect("read");
        assert!(page.0[..] == content[5 << 20..(5 << 20) + 4096], "other bytes came back");
        if prefetch == "0" {
            assert_eq!(gets(&server), [true]);
        } else {
            let mut seen = gets(&server);
            eventually("the block is fetched", || {
                seen.extend(gets(&server));
                seen.len() == 2
            });
            assert_eq!(seen, [true, false]);
            // Nothing more is asked for in this block.
            eventually("the block is kept", || files(Path::new(&cache)).iter().any(|file| file.contains("raw/chunks")));
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut page.0, 6 << 20).expect("read");
            assert!(page.0[..] == content[6 << 20..(6 << 20) + 4096], "other bytes came back");
            assert!(gets(&server).is_empty());
        }
        drop(file);
        mount.unmount();
    }
}

#[test]
fn small_files_read_in_order_are_fetched_before_they_are_asked_for() {
    const FILES: usize = 40;
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let content = |n: usize| Dice::new(100 + n as u64).bytes(70_000);
    let mount = uncached(&volume);
    fs::create_dir(mount.join("d")).expect("made");
    for n in 0..FILES {
        fs::write(mount.join(format!("d/{n}")), content(n)).expect("written");
    }
    mount.unmount();
    let cache = volume.temp.path().join("cache").to_string_lossy().into_owned();
    for (ahead, prefetch) in [(false, "0"), (true, "1")] {
        let mount = volume.mount_at("mnt", &["--cache-dir", &cache, "--prefetch", prefetch]);
        let listed = fs::read_dir(mount.join("d")).expect("listed").map(|entry| entry.expect("an entry").file_name());
        let listed: Vec<usize> = listed.map(|name| name.to_str().expect("a number").parse().expect("a number")).collect();
        assert_eq!(listed.len(), FILES);
        let gets =
            || -> Vec<String> { server.take_asked().into_iter().filter(|asked| asked.method == "GET").map(|asked| asked.target).collect() };
        gets();
        let read = |n: usize| assert!(fs::read(mount.join(format!("d/{n}"))).expect("read") == content(n), "other bytes came back");
        read(listed[0]);
        read(listed[1]);
        let mut seen = gets();
        if ahead {
            eventually("others are fetched", || {
                seen.extend(gets());
                seen.len() > 10
            });
        }
        listed[2..].iter().for_each(|n| read(*n));
        seen.extend(gets());
        assert_eq!(seen.len(), FILES, "each of them once: {seen:?}");
        mount.unmount();
        fs::remove_dir_all(&cache).expect("removed");
    }
}

#[test]
fn limits_hold_as_they_are_set_and_changed() {
    const BYTES: usize = 12 << 20;
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &wanted("s3", &server.bucket("data"))).expect("made");
    let content = Dice::new(15).bytes(BYTES);
    let write = |mount: &Mount, name: &str| {
        let began = Instant::now();
        let mut file = fs::File::create(mount.join(name)).expect("created");
        file.write_all(&content).expect("written");
        file.sync_all().expect("stored");
        began.elapsed()
    };
    // Two of three blocks wait for those before them, at 5 MB a second.
    let limited = Duration::from_millis(1600);
    let mount = volume.mount_at("mnt", &["--cache-size", "0", "--heartbeat", "1", "--max-deletes", "0", "--download-limit", "40"]);
    write(&mount, "free");
    let config = run(Command::new(PANDO).arg("config").arg(volume.dir()).args(["--upload-limit", "40"]));
    assert!(config.status.success(), "{}", text(&config));
    eventually("the limit of the volume holds", || write(&mount, "limited") >= limited);
    mount.unmount();
    let mount = volume.mount_at("mnt", &["--cache-size", "0", "--max-deletes", "0", "--download-limit", "40", "--upload-limit", "0"]);
    let began = Instant::now();
    assert!(fs::read(mount.join("free")).expect("read") == content, "other bytes came back");
    assert!(began.elapsed() >= limited, "{:?}", began.elapsed());
    // A mount that deletes nothing leaves that to others.
    fs::remove_file(mount.join("free")).expect("removed");
    fs::remove_file(mount.join("limited")).expect("removed");
    let bucket = volume.temp.path().join("s3/data/vol/chunks");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!files(&bucket).is_empty());
    mount.unmount();
    let mount = uncached(&volume);
    eventually("the objects are deleted", || files(&bucket).is_empty());
    mount.unmount();
    volume.assert_clean();
}

/// What O_DIRECT reads into.
#[repr(align(4096))]
struct Aligned([u8; 4096]);

/// Gives the setting of a volume that is not in use other values.
fn change_setting(dir: &Path, change: impl FnOnce(&mut Setting)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let store = EmbeddedStore::open(dir).expect("opens");
        let values = store.read(&[Query::Get(key::SETTING)]).await.expect("read");
        let [Value::Bytes(Some(bytes))] = &values[..] else { panic!("{values:?}") };
        let mut setting = Setting::parse(bytes).expect("sound");
        change(&mut setting);
        store.commit(&[], &[Write::Set(key::SETTING, setting.encode().into())], &[]).await.expect("written");
        store.sync().await.expect("synced");
    });
}

#[test]
fn objects_spread_over_buckets() {
    let volume = Volume::new();
    let server = server(&volume);
    make(volume.dir(), &NewVolume { block_kib: Some(64), ..wanted("s3", &server.bucket("data")) }).expect("made");
    change_setting(&volume.dir(), |setting| {
        setting.set("Shards", json!(3));
        setting.set("Bucket", json!(server.bucket("part-%d")));
    });
    let parts = [0, 1, 2].map(|n| volume.temp.path().join(format!("s3/part-{n}")));
    for part in &parts {
        fs::create_dir(part).expect("made");
    }
    let content = Dice::new(3).bytes(2 << 20);
    let mount = uncached(&volume);
    fs::write(mount.join("f"), &content).expect("written");
    mount.unmount();
    let counts = parts.each_ref().map(|part| files(part).len());
    assert!(counts.iter().all(|count| *count > 0) && counts.iter().sum::<usize>() == 32, "{counts:?}");
    let mount = uncached(&volume);
    assert!(fs::read(mount.join("f")).expect("read") == content, "other bytes came back");
    mount.unmount();
    volume.assert_clean();
    let output = run(Command::new(PANDO).arg("status").arg(volume.dir()));
    assert!(output.status.success() && !text(&output).contains(SECRET_KEY), "{}", text(&output));
}

#[test]
fn a_bucket_that_cannot_be_used_says_why() {
    let volume = Volume::new();
    let server = server(&volume);
    let refused = |wanted: &NewVolume, why: &[&str]| {
        let error = make(volume.dir(), wanted).expect_err("refused").to_string();
        assert!(why.iter().all(|why| error.contains(why)), "{error}");
        assert!(!error.contains("hush"), "{error}");
    };
    let plain = wanted("s3", &server.bucket("data"));
    refused(&NewVolume { secret_key: Some("hush".into()), ..plain.clone() }, &["s3://127.0.0.1", "/data/vol/", "access key"]);
    refused(&NewVolume { bucket: None, ..plain.clone() }, &["needs a bucket"]);
    refused(&NewVolume { storage: Some("oss".into()), ..plain.clone() }, &["Storage = oss"]);
    refused(&wanted("s3", "https://127.0.0.1:1/data?tls-insecure-skip-verify=true"), &["SSL_CERT_FILE"]);
    refused(&wanted("minio", &server.bucket("")), &["no bucket"]);
    fs::create_dir_all(volume.temp.path().join("s3/data/vol")).expect("made");
    fs::write(volume.temp.path().join("s3/data/vol/stranger"), "x").expect("written");
    refused(&plain, &["not empty"]);
    fs::remove_file(volume.temp.path().join("s3/data/vol/stranger")).expect("removed");
    make(volume.dir(), &plain).expect("made");
    // Another volume of this name must not share the objects of the first.
    let other = make(volume.temp.path().join("other"), &plain).expect_err("refused").to_string();
    assert!(other.contains("not empty"), "{other}");
    let mnt = volume.temp.path().join("mnt");
    let mount = || {
        let output = run(Command::new("timeout").arg("50").arg(PANDO).arg("mount").arg(volume.dir()).arg(&mnt));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(!is_mounted(&mnt));
        text(&output)
    };
    let elsewhere = volume.temp.path().join("s3/moved");
    fs::rename(volume.temp.path().join("s3/data"), &elsewhere).expect("renamed");
    let said = mount();
    assert!(said.contains("no bucket data"), "{said}");
    drop(server);
    let said = mount();
    assert!(said.contains("cannot use s3://127.0.0.1") && said.contains("onnect"), "{said}");
}

/// In a worker process, for its environment: a volume on `minio` without keys in its setting.
pub fn make_minio_worker() {
    let wanted = NewVolume { access_key: None, secret_key: None, ..wanted("minio", &worker_arg(1)) };
    make(worker_arg(0).into(), &wanted).expect("made");
}

#[test]
fn keys_and_regions_from_the_environment() {
    let volume = Volume::new();
    let server = server(&volume);
    let keys = [("MINIO_ACCESS_KEY", ACCESS_KEY), ("MINIO_SECRET_KEY", SECRET_KEY), ("MINIO_REGION", "home-1")];
    let bucket = server.bucket("minio/data");
    let output = run(worker("make-minio", &[volume.dir().as_os_str(), bucket.as_ref()]).envs(keys));
    assert!(output.status.success(), "{}", text(&output));
    let asked = server.take_asked();
    assert!(!asked.is_empty());
    for asked in asked {
        assert!(asked.target.starts_with("/data") && asked.headers["authorization"].contains("/home-1/s3/aws4_request"), "{asked:?}");
    }
    let status = |envs: &[(&str, &str)]| {
        let mut command = Command::new(PANDO);
        command.arg("status").arg(volume.dir()).env("AWS_EC2_METADATA_DISABLED", "true").env("HOME", volume.temp.path());
        command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_PROFILE").envs(envs.iter().copied());
        run(&mut command)
    };
    assert!(status(&keys).status.success());
    assert!(status(&[("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY)]).status.success());
    fs::create_dir(volume.temp.path().join(".aws")).expect("made");
    let profile = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    fs::write(volume.temp.path().join(".aws/credentials"), profile).expect("written");
    assert!(status(&[]).status.success(), "the shared profile");
    fs::remove_file(volume.temp.path().join(".aws/credentials")).expect("removed");
    let output = status(&[]);
    assert!(!output.status.success() && text(&output).contains("no access key"), "{}", text(&output));
}

/// The server of the long runs that is another program. `go install github.com/minio/minio@latest` builds it.
const REAL_SERVER: &str = "minio";

/// A running server of buckets, killed at the end.
struct RealServer {
    port: u16,
    dir: PathBuf,
    child: Child,
}

impl RealServer {
    fn start(dir: PathBuf) -> RealServer {
        let port = free_port();
        let child = RealServer::spawn(port, &dir);
        RealServer { port, dir, child }
    }

    fn spawn(port: u16, dir: &Path) -> Child {
        let mut command = Command::new(REAL_SERVER);
        command.args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")]).arg(dir);
        command.env("MINIO_ROOT_USER", ACCESS_KEY).env("MINIO_ROOT_PASSWORD", SECRET_KEY).stdout(Stdio::null()).stderr(Stdio::null());
        die_with_parent(&mut command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{REAL_SERVER}: {e}; this test needs the program {REAL_SERVER} in the PATH"));
        eventually("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        child
    }

    fn bucket(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.port)
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn restart(&mut self) {
        self.kill();
        self.child = RealServer::spawn(self.port, &self.dir);
    }
}

impl Drop for RealServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the server in this process does may be what we expect of one. In the long runs only: most machines have no such program.
#[test]
fn a_server_that_is_another_program() {
    if size(0, 1) == 0 {
        return;
    }
    let (redis, volume) = (RedisServer::start(), Volume::new());
    let mut server = RealServer::start(volume.temp.path().join("minio"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut config = S3Config::new(Flavor::S3, &server.bucket("conformance"));
        (config.access_key, config.secret_key) = (ACCESS_KEY.into(), SECRET_KEY.into());
        let store = S3Store::open(config).await.expect("opens");
        // It listens before it answers.
        let mut made = store.create().await;
        for _ in 0..50 {
            if made.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            made = store.create().await;
        }
        made.expect("made");
        conformance::run(&store).await;
        assert_eq!(store.deletes_at_once(), 1000, "it deletes many objects by one request");
    });
    let url = redis.url(1);
    let pando = |args: &[&str]| {
        let output = run(Command::new(PANDO).args(args));
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        text(&output)
    };
    let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
    pando(&[&["format", "--storage", "s3", "--trash-days", "0", "--bucket", &server.bucket("data")], &keys[..], &[&url, "vol"]].concat());
    let start = || Mount::start(Path::new(&url), &volume.temp.path().join("mnt"), &["--cache-size", "0"]);
    let mount = start();
    let mut dice = Dice::new(17);
    let files: Vec<(PathBuf, Vec<u8>)> =
        (0..60).map(|n| (mount.join(format!("d{}/f{n}", n % 7)), dice.bytes(if n % 10 == 0 { 9 << 20 } else { 1000 * n }))).collect();
    for (n, (path, content)) in files.iter().enumerate() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        // Its absence is a pause.
        if n == 30 {
            server.restart();
        }
        fs::write(path, content).expect("written");
    }
    sh(
        &mount.path,
        "git init -q r && cd r && seq 20000 > f && git add f && git -c user.name=t -c user.email=t@x commit -qm m && git fsck --full",
    );
    mount.unmount();
    let mount = start();
    for (path, content) in &files {
        assert!(fs::read(path).expect("read") == *content, "{path:?} has other bytes");
    }
    sh(&mount.path, "rm -rf d* && git -C r fsck --full");
    mount.unmount();
    pando(&["fsck", &url]);
    pando(&["gc", "--delete", &url]);
    let status: serde_json::Value = serde_json::from_slice(&run(Command::new(PANDO).args(["status", &url])).stdout).expect("a document");
    let uuid = status["Setting"]["UUID"].as_str().expect("a UUID");
    pando(&["destroy", "--force", &url, uuid]);
    assert_eq!(files_of_bucket(&server.dir.join("data/vol")), Vec::<String>::new());
}

/// Names of the objects below a directory of the server.
fn files_of_bucket(dir: &Path) -> Vec<String> {
    if dir.exists() { files(dir) } else { Vec::new() }
}
