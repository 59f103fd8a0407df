//! What goes wrong around a volume: damage, missing objects, full and read-only disks, bad arguments, dead mounts.

use crate::support::{Mount, PANDO, Volume, is_mounted, run, sh, text};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs a command that must fail without a panic, with one clear line that contains `expected`.
fn refused(args: &[&std::ffi::OsStr], expected: &str) {
    let output = run(Command::new("timeout").arg("20").arg(PANDO).args(args));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.to_lowercase().contains(&expected.to_lowercase()), "{args:?}: no word of {expected:?} in: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.lines().count() <= 3, "more than a few lines: {said}");
}

fn mount_refused(volume: &Volume, expected: &str) {
    let mnt = volume.temp.path().join("mnt");
    refused(&["mount".as_ref(), volume.dir().as_os_str(), mnt.as_os_str()], expected);
    assert!(!is_mounted(&mnt));
}

#[test]
fn bad_arguments_are_named() {
    let volume = Volume::new();
    let mnt = volume.temp.path().join("mnt");
    refused(&["mount".as_ref(), "redis://host:1/2/3".as_ref(), mnt.as_os_str()], "redis");
    refused(&["mount".as_ref(), "mysql://host/db".as_ref(), mnt.as_os_str()], "Invalid meta driver");
    refused(&["mount".as_ref(), "--no-such-flag".as_ref(), volume.dir().as_os_str(), mnt.as_os_str()], "unknown option");
    refused(&["status".as_ref(), volume.dir().as_os_str()], "not formatted");
    refused(&["format".as_ref(), volume.dir().as_os_str(), "A_bad".as_ref()], "invalid name");
    refused(&["umount".as_ref(), volume.temp.path().as_os_str()], "not");
    let unknown = run(Command::new(PANDO).arg("bogus"));
    assert_eq!(unknown.status.code(), Some(3));
    assert!(text(&unknown).contains("No help topic for 'bogus'"));
}

#[test]
fn a_damaged_store_is_refused_and_left_alone() {
    let volume = Volume::new();
    volume.mount().unmount();
    let db = volume.dir().join("pando.db");
    let good = fs::read(&db).expect("read");
    for (what, bytes) in
        [("text", b"this is not a database, it is a shopping list".repeat(200)), ("short", good[..good.len() / 3].to_vec())]
    {
        fs::write(&db, &bytes).expect("written");
        mount_refused(&volume, "damaged");
        assert_eq!(fs::read(&db).expect("read"), bytes, "{what}: the file was changed");
    }
    fs::write(&db, &good).expect("written");
    volume.mount().unmount();
    volume.assert_clean();
}

#[test]
fn a_missing_or_damaged_object_is_an_error_and_nothing_else_is_lost() {
    let volume = Volume::new();
    let mount = volume.mount();
    for name in ["one", "two", "three"] {
        fs::write(mount.join(name), vec![name.as_bytes()[1]; 200_000]).expect("written");
    }
    mount.unmount();
    let objects: Vec<String> = sh(&volume.dir(), "find objects -type f | grep chunks/ | sort -V").lines().map(str::to_string).collect();
    assert_eq!(objects.len(), 3, "one object a file: {objects:?}");
    fs::remove_file(volume.dir().join(&objects[0])).expect("removed");
    File::options().write(true).open(volume.dir().join(&objects[1])).and_then(|f| f.set_len(1000)).expect("cut");
    let check = run(Command::new(PANDO).arg("fsck").arg(volume.dir()));
    assert_eq!(check.status.code(), Some(1), "{}", text(&check));
    assert!(text(&check).contains("/one") && text(&check).contains("/two") && !text(&check).contains("/three"), "{}", text(&check));
    let mount = volume.mount();
    for name in ["one", "two"] {
        assert_eq!(fs::read(mount.join(name)).expect_err("damaged").raw_os_error(), Some(libc::EIO), "{name}");
    }
    assert_eq!(fs::read(mount.join("three")).expect("whole"), vec![b'h'; 200_000]);
    fs::write(mount.join("four"), "still works").expect("written");
    mount.unmount();
}

#[test]
fn a_directory_that_cannot_be_written_is_refused() {
    let volume = Volume::new();
    volume.mount().unmount();
    // Root ignores modes, so a read-only bind mount stands for a read-only disk.
    let ro = volume.temp.path().join("ro");
    fs::create_dir(&ro).expect("created");
    sh(volume.temp.path(), &format!("mount --bind {} {1} && mount -o remount,ro,bind {1}", volume.dir().display(), ro.display()));
    let mnt = volume.temp.path().join("mnt");
    let result = std::panic::catch_unwind(|| refused(&["mount".as_ref(), ro.as_os_str(), mnt.as_os_str()], "read-only"));
    sh(volume.temp.path(), &format!("umount {}", ro.display()));
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// A small filesystem of its own for a volume, unmounted at the end.
struct SmallDisk<'a>(&'a Path);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_is_enospc_and_loses_nothing() {
    let volume = Volume::new();
    let disk = volume.temp.path().join("disk");
    fs::create_dir(&disk).expect("created");
    sh(volume.temp.path(), &format!("mount -t tmpfs -o size=24m tmpfs {}", disk.display()));
    let _disk = SmallDisk(&disk);
    let mount = Mount::start(&disk.join("volume"), &volume.temp.path().join("mnt"), &[]);
    fs::write(mount.join("kept"), vec![1; 1_000_000]).expect("written");
    let mut failed = None;
    for i in 0..100 {
        let write = || {
            let mut file = File::create(mount.join(format!("f{i}")))?;
            file.write_all(&vec![2; 1_000_000])?;
            file.sync_all()
        };
        if let Err(error) = write() {
            failed = Some(error);
            break;
        }
    }
    assert_eq!(failed.expect("24 MiB do not hold 100").raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(fs::read(mount.join("kept")).expect("read"), vec![1; 1_000_000]);
    // Room again: the volume works again, without a remount.
    sh(&mount.path, "rm -f f*");
    let write = || {
        let mut file = File::create(mount.join("after"))?;
        file.write_all(&[3; 500_000])?;
        file.sync_all()
    };
    crate::support::eventually("deleted data frees the disk", || write().is_ok());
    assert_eq!(fs::read(mount.join("after")).expect("read"), vec![3; 500_000]);
    mount.unmount();
    let mount = Mount::start(&disk.join("volume"), &volume.temp.path().join("mnt"), &[]);
    assert_eq!(fs::read(mount.join("kept")).expect("read"), vec![1; 1_000_000]);
    mount.unmount();
}

#[test]
fn a_dead_mount_point_is_replaced() {
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("f"), "x").expect("written");
    let path = mount.path.clone();
    mount.kill();
    assert_eq!(fs::metadata(&path).expect_err("dead").raw_os_error(), Some(libc::ENOTCONN));
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("f")).expect("read"), "x");
    // The kernel still answers for the root from what it remembers; that must not make a dead mount look alive.
    fs::metadata(&path).expect("alive");
    mount.kill();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("f")).expect("read"), "x");
    mount.unmount();
    assert!(!is_mounted(&path));
}

#[test]
fn sigterm_flushes_and_unmounts() {
    let volume = Volume::new();
    let mount = volume.mount();
    let mut file = File::create(mount.join("f")).expect("created");
    file.write_all(&[7; 100_000]).expect("written");
    sh(&mount.path, &format!("cd /; kill -TERM {}", mount.pid()));
    crate::support::eventually("the daemon unmounts", || !is_mounted(&mount.path));
    drop(file);
    drop(mount);
    let mount = volume.mount();
    assert_eq!(fs::read(mount.join("f")).expect("read"), [7; 100_000]);
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn the_background_daemon_says_ready_or_why_not() {
    let volume = Volume::new();
    let mnt = volume.temp.path().join("mnt");
    let log = volume.temp.path().join("log");
    let start = |dir: &Path| run(Command::new("timeout").arg("20").arg(PANDO).args(["mount", "-d", "--log"]).arg(&log).arg(dir).arg(&mnt));
    let output = start(&volume.dir());
    assert!(output.status.success(), "{}", text(&output));
    assert!(is_mounted(&mnt), "mounted when the launcher returns");
    fs::write(mnt.join("f"), "x").expect("written");
    let output = run(Command::new(PANDO).arg("umount").arg(&mnt));
    assert!(output.status.success(), "{}", text(&output));
    assert!(!is_mounted(&mnt));
    fs::write(volume.dir().join("pando.db"), "x".repeat(10_000)).expect("written");
    let output = start(&volume.dir());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("damaged"), "{}", text(&output));
    assert_eq!(fs::metadata(&log).expect("the log").permissions().mode() & 0o777, 0o644);
}
