//! A volume whose disk is full: applications see ENOSPC and nothing else, it can be mounted and emptied, and goes on when there is room.

use crate::support::{Mount, PANDO, eventually, run, sh, text};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A small filesystem of its own, unmounted at the end.
struct SmallDisk {
    temp: TempDir,
}

impl SmallDisk {
    fn new(mib: u32) -> SmallDisk {
        let disk = SmallDisk { temp: tempfile::Builder::new().prefix("pando-test-").tempdir().expect("a temporary directory") };
        fs::create_dir(disk.path()).expect("created");
        sh(disk.temp.path(), &format!("mount -t tmpfs -o size={mib}m tmpfs disk"));
        disk
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join("disk")
    }

    fn volume(&self) -> PathBuf {
        self.path().join("volume")
    }

    fn mount(&self) -> Mount {
        Mount::start(&self.volume(), &self.temp.path().join("mnt"), &[])
    }

    /// Takes what is left of the disk, as other programs do.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.path().join("filler")).expect("made");
        while filler.write(&[7; 4096]).is_ok() {}
    }

    fn fsck(&self) {
        let output = run(Command::new(PANDO).arg("fsck").arg(self.volume()));
        assert!(output.status.success(), "fsck: {}", text(&output));
    }

    /// Objects that no record names.
    fn leaked(&self) -> String {
        let output = run(Command::new(PANDO).arg("gc").arg(self.volume()).env("JFS_GC_SKIPPEDTIME", "0"));
        assert!(output.status.success(), "gc: {}", text(&output));
        let said = text(&output);
        let at = said.find(" leaked").unwrap_or_else(|| panic!("no word of leaks in {said}"));
        said[..at].rsplit(' ').next().unwrap_or_default().into()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        for name in ["mnt", "disk"] {
            let _ = Command::new("umount").arg("-lq").arg(self.temp.path().join(name)).status();
        }
    }
}

fn store(path: &Path, len: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&vec![len as u8; len])?;
    file.sync_all()
}

/// Stores files of this size until there is no room; how many were stored.
fn fill(dir: &Path, name: &str, len: usize) -> usize {
    for i in 0..1_000_000 {
        if let Err(error) = store(&dir.join(format!("{name}{i}")), len) {
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "file {i} of {len} bytes");
            return i;
        }
    }
    panic!("there is no end of the disk")
}

#[test]
fn a_full_disk_is_enospc_and_loses_nothing() {
    let disk = SmallDisk::new(64);
    let mount = disk.mount();
    let kept = mount.join("kept");
    fs::write(&kept, vec![1; 1_000_000]).expect("written");
    let large = fill(&mount.path, "large", 1_000_000);
    assert!(large > 20, "only {large} MB are stored on 64 MiB");
    fill(&mount.path, "small", 3000);
    disk.fill();
    fill(&mount.path, "empty", 0);
    assert_eq!(fs::read(&kept).expect("read"), vec![1; 1_000_000]);
    assert_eq!(fs::create_dir(mount.join("d")).expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    // A file of several blocks: some are stored before there is no room. None of them stays.
    assert_eq!(store(&mount.join("large0"), 20_000_000).expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    // Room again: the volume works again, without a remount.
    sh(&mount.path, "rm -f large*");
    assert_eq!(fs::metadata(disk.volume().join("reserve")).expect("there").len(), 0, "it was needed");
    eventually("deleted data frees the disk", || store(&mount.join("after"), 500_000).is_ok());
    assert!(fs::metadata(disk.volume().join("reserve")).expect("there").len() > 0, "the reserve is back");
    eventually("what was stored in vain is removed", || disk.leaked() == "0");
    mount.unmount();
    disk.fsck();
    let mount = disk.mount();
    assert_eq!(fs::read(mount.join("kept")).expect("read"), vec![1; 1_000_000]);
    assert_eq!(fs::read(mount.join("after")).expect("read"), vec![500_000_usize as u8; 500_000]);
    mount.unmount();
}

#[test]
fn a_volume_on_a_full_disk_is_mounted_and_emptied() {
    let disk = SmallDisk::new(64);
    let mount = disk.mount();
    fs::create_dir_all(mount.join("a/b")).expect("made");
    fs::write(mount.join("a/kept"), vec![1; 1_000_000]).expect("written");
    // Small files: nearly all of it lies in the database.
    let files = fill(&mount.join("a/b"), "s", 15_000);
    assert!(files > 1000, "only {files} small files are stored on 64 MiB");
    disk.fill();
    fill(&mount.path, "e", 0);
    mount.kill();
    let mount = disk.mount();
    assert_eq!(fs::read(mount.join("a/b/s17")).expect("read"), vec![15_000_usize as u8; 15_000]);
    assert_eq!(store(&mount.join("more"), 100).expect_err("no room").raw_os_error(), Some(libc::ENOSPC));
    fs::rename(mount.join("a/b/s17"), mount.join("a/b/renamed")).expect("a rename needs no room");
    sh(&mount.path, "rm -r a/b && rm -f e* && truncate -s 5 a/kept && test -z \"$(ls -A | grep -v ^a$)\"");
    // The disk belongs to others, but there is room in the database.
    eventually("room in the database is used again", || store(&mount.join("little"), 100).is_ok());
    mount.unmount();
    disk.fsck();
    let mount = disk.mount();
    assert!(fill(&mount.path, "again", 15_000) > files / 2, "what is free in the database holds as much as before");
    assert_eq!(fs::read(mount.join("a/kept")).expect("read"), vec![1; 5]);
    mount.unmount();
    disk.fsck();
}
