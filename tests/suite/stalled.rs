//! A process that waits for a server that is away can be killed.

use crate::journal::World;
use crate::support::{eventually, size, worker, worker_arg};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Of a file: more than is kept beside the metadata.
const FILE_BYTES: usize = 300_000;
/// Time a process has to begin its read after it was let go.
const BEGIN: Duration = Duration::from_millis(50);
/// Seconds a killed process has: on a machine that does much else, and on one that does nothing else.
const DEATH_SECONDS_MAX: (usize, usize) = (5, 1);

/// In a worker: reads an open file once it is let go: through the kernel's pages, past them, or behind a write that is not stored.
pub fn stalled_worker() {
    let (path, how, said, go) = (worker_arg(0), worker_arg(1), worker_arg(2), worker_arg(3));
    let flags = if how == "pages" { 0 } else { libc::O_DIRECT };
    let file = OpenOptions::new().read(true).write(how == "write").custom_flags(flags).open(path).expect("opened");
    if how == "write" {
        file.write_all_at(&[1; 4096], 0).expect("buffered");
    }
    fs::write(said, "").expect("written");
    while !Path::new(&go).exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = file.read_at(&mut [0; 8192], 0);
    panic!("the server answers");
}

#[test]
fn a_process_whose_read_is_stalled_dies_within_a_second() {
    let world = World::new();
    let mount = world.mount("mnt", &[]);
    let names = ["pages", "direct", "write"];
    for name in names {
        fs::write(mount.join(name), vec![7; FILE_BYTES]).expect("written");
    }
    mount.unmount();
    let mount = world.mount("mnt", &[]);
    for name in names {
        let [said, go] = ["said", "go"].map(|what| world.volume.temp.path().join(format!("{name}-{what}")));
        let path = mount.join(name);
        let mut reader = worker("stalled", &[path.as_os_str(), name.as_ref(), said.as_os_str(), go.as_os_str()]).spawn().expect("started");
        eventually("the reader has opened its file", || said.exists());
        world.to_bucket.hold_requests(true);
        fs::write(&go, "").expect("written");
        std::thread::sleep(BEGIN);
        assert!(reader.try_wait().expect("a child of ours").is_none(), "{name}: the read is not stalled");
        let begin = Instant::now();
        reader.kill().expect("alive");
        reader.wait().expect("reaped");
        let took = begin.elapsed();
        world.to_bucket.hold_requests(false);
        println!("{name}: died after {took:?}");
        assert!(took < Duration::from_secs(size(DEATH_SECONDS_MAX.0, DEATH_SECONDS_MAX.1) as u64), "{name}: died after {took:?}");
        // The mount goes on, and what was written is stored, though nobody waits for it.
        let first = if name == "write" { 1 } else { 7 };
        eventually("the file is whole", || {
            fs::read(&path).is_ok_and(|bytes| bytes[0] == first && bytes[4096..] == vec![7; FILE_BYTES - 4096])
        });
    }
    mount.unmount();
    world.nothing_is_left();
}
