//! What goes wrong around a volume: damage, missing objects, read-only disks, bad arguments, dead mounts.

use crate::support::{PANDO, Volume, is_mounted, run, sh, text};
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
    refused(&["mount".as_ref(), "data/vol".as_ref(), mnt.as_os_str()], "a directory is written ./data/vol");
    refused(&["status".as_ref(), volume.dir().as_os_str()], "not formatted");
    refused(&["format".as_ref(), volume.dir().as_os_str(), "A_bad".as_ref()], "invalid name");
    refused(&["umount".as_ref(), volume.temp.path().as_os_str()], "not");
    use std::os::unix::ffi::OsStrExt;
    let no_text = std::ffi::OsStr::from_bytes(b"/tmp/no\xfftext");
    refused(&["mount".as_ref(), volume.dir().as_os_str(), no_text], "no text in UTF-8");
    refused(&["mount".as_ref(), "~nobody".as_ref(), mnt.as_os_str()], "only the shell knows");
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
    // Emptied, it must not become another volume whose objects are mixed with those of this one, whatever its name.
    fs::write(&db, "").expect("written");
    mount_refused(&volume, "its metadata are not");
    let renamed = volume.temp.path().join("renamed");
    fs::rename(volume.dir(), &renamed).expect("renamed");
    let mnt = volume.temp.path().join("mnt");
    refused(&["mount".as_ref(), renamed.as_os_str(), mnt.as_os_str()], "its metadata are not");
    fs::remove_file(renamed.join("pando.db")).expect("removed");
    refused(&["mount".as_ref(), renamed.as_os_str(), mnt.as_os_str()], "holds other files and no volume");
    fs::rename(&renamed, volume.dir()).expect("renamed");
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
fn a_mount_point_in_use_is_refused_and_goes_on() {
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("f"), "x").expect("written");
    let shown = mount.path.display().to_string();
    let again = |dir: &Path, expected: &str| refused(&["mount".as_ref(), dir.as_os_str(), mount.path.as_os_str()], expected);
    let already = format!("volume volume is mounted at {shown} already; stop it with: pando umount {shown}");
    again(&volume.dir(), &already);
    // Another volume does not go on top of it either, and is not made for nothing.
    let other = volume.temp.path().join("other");
    again(&other, &already);
    assert!(!other.exists());
    std::os::unix::fs::symlink(&mount.path, volume.temp.path().join("link")).expect("linked");
    refused(&["mount".as_ref(), volume.dir().as_os_str(), volume.temp.path().join("link").as_os_str()], &already);
    // One that hangs must not hang who looks at it.
    sh(Path::new("/"), &format!("kill -STOP {}", mount.pid()));
    again(&volume.dir(), "does not answer");
    sh(Path::new("/"), &format!("kill -CONT {}", mount.pid()));
    assert_eq!(fs::read_to_string(mount.join("f")).expect("read"), "x");
    mount.unmount();
}

#[test]
fn output_that_cannot_be_written_is_an_error_and_never_a_panic() {
    let volume = Volume::new();
    volume.mount().unmount();
    let dir = volume.dir().display().to_string();
    for command in
        [format!("status {dir}"), "version".into(), "--help".into(), "mount --help".into(), format!("dump {dir}"), format!("config {dir}")]
    {
        let full = run(Command::new("bash").args(["-c", &format!("{PANDO} {command} > /dev/full")]));
        let said = text(&full);
        assert_eq!(full.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("No space left on device") && !said.contains("panicked"), "{command}: {said}");
        // Who reads no further has seen enough; a dump that is cut is not one.
        let cut = run(Command::new("bash").args(["-c", &format!("{PANDO} {command} | sleep 0; exit ${{PIPESTATUS[0]}}")]));
        assert!(cut.status.success() || command.starts_with("dump"), "{command}: {}", text(&cut));
        assert!(!text(&cut).contains("panicked"), "{command}: {}", text(&cut));
    }
    // A mount is none the worse for it.
    let mnt = volume.temp.path().join("mnt");
    let log = volume.temp.path().join("log");
    let mount = format!("{PANDO} mount -d --log {} {dir} {} > /dev/full", log.display(), mnt.display());
    assert!(run(Command::new("bash").args(["-c", &mount])).status.success());
    assert!(is_mounted(&mnt));
    assert!(run(Command::new(PANDO).arg("umount").arg(&mnt)).status.success());
}

#[test]
fn the_size_of_a_volume_is_that_of_its_disk_unless_it_has_one_of_its_own() {
    let volume = Volume::new();
    let mount = volume.mount();
    let size = |path: &Path| {
        sh(path, "df -B1 --output=size,avail . | tail -1").split_whitespace().map(|n| n.parse().expect("a number")).collect::<Vec<u64>>()
    };
    let (ours, disks) = (size(&mount.path), size(volume.temp.path()));
    // Others use the disk meanwhile; sizes are in units of the block.
    assert!(ours[0].abs_diff(disks[0]) < 1 << 20 && ours[1].abs_diff(disks[1]) < 1 << 30, "{ours:?} {disks:?}");
    let config = run(Command::new(PANDO).args(["config", "--capacity", "1", "--yes"]).arg(volume.dir()));
    assert!(config.status.success(), "{}", text(&config));
    crate::support::eventually("the mount knows its capacity", || size(&mount.path)[0] == 1 << 30);
    mount.unmount();
}

#[test]
fn who_types_a_line_sees_what_is_wrong_with_it() {
    let volume = Volume::new();
    let (mnt, log, juicefs) = (volume.temp.path().join("mnt"), volume.temp.path().join("log"), volume.temp.path().join("juicefs"));
    let mut mount = Command::new(PANDO);
    mount.args(["mount", "-d", "--upload-delay", "5", "--cache-size", "5", "--attr-cache", "60", "--log"]).args([
        &log,
        &volume.dir(),
        &mnt,
    ]);
    let output = run(&mut mount);
    assert!(output.status.success(), "{}", text(&output));
    for (what, shown) in
        [("terminal", String::from_utf8_lossy(&output.stderr).into_owned()), ("log", fs::read_to_string(&log).expect("read"))]
    {
        for warning in [
            "the cache options have no effect without --cache-dir",
            "--upload-delay has no effect",
            "--attr-cache 60 is more than a local volume allows",
        ] {
            assert_eq!(shown.matches(warning).count(), 1, "{what}: {shown}");
        }
    }
    assert!(run(Command::new(PANDO).arg("umount").arg(&mnt)).status.success());
    // Its other name is the one it has in what it says.
    std::os::unix::fs::symlink(PANDO, &juicefs).expect("linked");
    let said = |args: &[&str]| text(&run(Command::new(&juicefs).args(args)));
    assert!(said(&["--help"]).contains("Usage: juicefs [OPTIONS]"), "{}", said(&["--help"]));
    assert!(said(&["status", "--help"]).contains("Usage: juicefs status"), "{}", said(&["status", "--help"]));
    assert!(said(&["mount"]).contains("   juicefs mount"), "{}", said(&["mount"]));
    assert!(said(&["status", "/no/volume"]).contains(" juicefs["), "{}", said(&["status", "/no/volume"]));
    assert!(text(&run(Command::new(PANDO).args(["status", "--help"]))).contains("Usage: pando status"));
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
    // A lock of the script that mounts, and whatever else it has open, is not the mount's.
    let mount =
        format!("exec 9> lock; flock 9; {PANDO} mount -d --log {} {} {} 7>&1", log.display(), volume.dir().display(), mnt.display());
    sh(volume.temp.path(), &mount);
    sh(volume.temp.path(), "flock --nonblock lock true");
    assert!(run(Command::new(PANDO).arg("umount").arg(&mnt)).status.success());
    fs::write(volume.dir().join("pando.db"), "x".repeat(10_000)).expect("written");
    let output = start(&volume.dir());
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("damaged"), "{}", text(&output));
    assert_eq!(fs::metadata(&log).expect("the log").permissions().mode() & 0o777, 0o644);
}
