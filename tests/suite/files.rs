//! What single system calls do, where no suite looks: unlinked files, holes, unnamed files, large directories, memory maps.

use crate::support::{Volume, sh, size};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

fn cstring(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no NUL")
}

#[test]
fn everything_is_there_after_a_remount() {
    let volume = Volume::new();
    let mount = volume.mount();
    sh(
        &mount.path,
        "mkdir -p a/b; echo hello > a/b/file; ln a/b/file a/link; ln -s b/file a/sym; mkfifo a/pipe; head -c 10000000 /dev/urandom > a/big; chmod 640 a/big; touch -d @12345.678 a/b/file",
    );
    let sum = sh(&mount.path, "md5sum < a/big");
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(sh(&mount.path, "md5sum < a/big"), sum);
    assert_eq!(fs::read_to_string(mount.join("a/sym")).expect("through the link"), "hello\n");
    let file = fs::metadata(mount.join("a/link")).expect("there");
    assert_eq!((file.nlink(), file.mtime(), file.mtime_nsec()), (2, 12345, 678_000_000));
    assert_eq!(fs::metadata(mount.join("a/big")).expect("there").permissions().mode() & 0o7777, 0o640);
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn an_unlinked_open_file_lives_until_it_is_closed() {
    let volume = Volume::new();
    let mount = volume.mount();
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("f")).expect("created");
    file.write_all(b"before").expect("written");
    fs::remove_file(mount.join("f")).expect("removed");
    file.write_all(b" and after").expect("written");
    file.sync_all().expect("synced");
    file.seek(SeekFrom::Start(0)).expect("seek");
    let mut all = String::new();
    file.read_to_string(&mut all).expect("read");
    assert_eq!(all, "before and after");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
    file.set_len(3).expect("truncated");
    // Another file of the same name is another file, also when it replaces the first by rename.
    fs::write(mount.join("g"), "other").expect("written");
    fs::rename(mount.join("g"), mount.join("f")).expect("renamed");
    assert_eq!(file.metadata().expect("fstat").len(), 3);
    drop(file);
    assert_eq!(fs::read_to_string(mount.join("f")).expect("read"), "other");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn an_unnamed_file_can_be_given_a_name() {
    let volume = Volume::new();
    let mount = volume.mount();
    let unnamed = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(&mount.path).expect("O_TMPFILE");
    let mut file = unnamed();
    file.write_all(b"content").expect("written");
    assert_eq!(fs::read_dir(&mount.path).expect("listed").count(), 0);
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("no NUL");
    let to = cstring(&mount.join("named"));
    // SAFETY: both strings are NUL-terminated and live through the call.
    let result = unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    drop(file);
    drop(unnamed());
    assert_eq!(fs::read_to_string(mount.join("named")).expect("it outlives its handle"), "content");
    assert_eq!(fs::metadata(mount.join("named")).expect("there").nlink(), 1);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("named")).expect("it outlives the mount"), "content");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn holes_are_found_and_read_as_zeros() {
    let volume = Volume::new();
    let mount = volume.mount();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("f")).expect("created");
    const M: u64 = 1 << 20;
    file.write_all_at(&[1; 4096], 200 * M).expect("written");
    file.write_all_at(&[2; 4096], 70 * M).expect("written");
    file.set_len(300 * M).expect("grown");
    // SAFETY: plain calls on an open descriptor.
    let seek = |from: u64, whence| unsafe { libc::lseek(file.as_raw_fd(), from as i64, whence) };
    assert_eq!(seek(0, libc::SEEK_DATA), 70 * M as i64);
    assert_eq!(seek(70 * M, libc::SEEK_HOLE), 70 * M as i64 + 4096);
    assert_eq!(seek(71 * M, libc::SEEK_DATA), 200 * M as i64);
    assert_eq!(seek(201 * M, libc::SEEK_DATA), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENXIO));
    assert_eq!(seek(201 * M, libc::SEEK_HOLE), 201 * M as i64);
    let mut bytes = vec![9; 8192];
    file.read_exact_at(&mut bytes, 70 * M - 2048).expect("read");
    assert!(bytes[..2048].iter().all(|b| *b == 0) && bytes[2048..6144].iter().all(|b| *b == 2) && bytes[6144..].iter().all(|b| *b == 0));
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: as above.
    assert_eq!(unsafe { libc::fallocate(file.as_raw_fd(), punch, 70 * M as i64, M as i64) }, 0);
    file.read_exact_at(&mut bytes, 70 * M - 2048).expect("read");
    assert!(bytes.iter().all(|b| *b == 0));
    assert_eq!(seek(0, libc::SEEK_DATA), 200 * M as i64);
    drop(file);
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn memory_maps_private_and_shared() {
    let volume = Volume::new();
    let mount = volume.mount();
    let path = mount.join("map");
    fs::write(&path, vec![b'a'; 100_000]).expect("written");
    let file = OpenOptions::new().read(true).write(true).open(&path).expect("opened");
    for (flags, expected) in [(libc::MAP_PRIVATE, b'a'), (libc::MAP_SHARED, b'Z')] {
        // SAFETY: the mapping is as long as the file, which nobody shortens, and is unmapped before its last use ends.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), 100_000, libc::PROT_READ | libc::PROT_WRITE, flags, file.as_raw_fd(), 0);
            assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
            let bytes = std::slice::from_raw_parts_mut(at.cast::<u8>(), 100_000);
            assert_eq!(bytes[99_999], b'a');
            bytes[70_000] = b'Z';
            assert_eq!(libc::msync(at, 100_000, libc::MS_SYNC), 0);
            assert_eq!(libc::munmap(at, 100_000), 0);
        }
        let mut one = [0];
        File::open(&path).and_then(|f| f.read_exact_at(&mut one, 70_000)).expect("read");
        assert_eq!(one[0], expected);
    }
    drop(file);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read(mount.join("map")).expect("read")[70_000], b'Z');
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn a_large_directory_is_listed_in_little_memory() {
    let volume = Volume::new();
    let mount = volume.mount();
    let count = size(20_000, 1_000_000);
    fs::create_dir(mount.join("d")).expect("created");
    let started = std::time::Instant::now();
    for i in 0..count {
        File::create_new(mount.join(format!("d/file-{i:07}"))).expect("created");
    }
    let created = started.elapsed().as_secs_f64();
    let started = std::time::Instant::now();
    let mut seen = vec![false; count];
    for entry in fs::read_dir(mount.join("d")).expect("listed") {
        let name = entry.expect("an entry").file_name();
        let number: usize = name.to_str().and_then(|n| n.strip_prefix("file-")).and_then(|n| n.parse().ok()).expect("a name we made");
        assert!(!std::mem::replace(&mut seen[number], true), "{number} listed twice");
    }
    assert!(seen.iter().all(|s| *s), "an entry was not listed");
    let resident = mount.resident_bytes() >> 20;
    println!(
        "directory of {count}: created in {created:.1} s, listed in {:.1} s, daemon at most {resident} MiB",
        started.elapsed().as_secs_f64()
    );
    assert!(resident <= 256, "the daemon used {resident} MiB");
    mount.unmount();
}

#[test]
fn a_listing_survives_changes_and_seeks() {
    let volume = Volume::new();
    let mount = volume.mount();
    let dir = mount.join("d");
    fs::create_dir(&dir).expect("created");
    for i in 0..5000 {
        fs::write(dir.join(format!("stays-{i}")), "").expect("written");
        fs::write(dir.join(format!("goes-{i}")), "").expect("written");
    }
    let path = cstring(&dir);
    // SAFETY: the stream is open until closedir, entries are read before the next call.
    unsafe {
        let stream = libc::opendir(path.as_ptr());
        assert!(!stream.is_null());
        let next = || {
            let entry = libc::readdir(stream);
            (!entry.is_null()).then(|| std::ffi::CStr::from_ptr((*entry).d_name.as_ptr()).to_string_lossy().into_owned())
        };
        let mut seen = std::collections::HashMap::new();
        let mut marks = Vec::new();
        for i in 0.. {
            let mark = libc::telldir(stream);
            let Some(name) = next() else { break };
            if i % 700 == 5 {
                marks.push((mark, name.clone()));
            }
            if let Some(number) = name.strip_prefix("stays-") {
                // While the listing goes on, others come and go.
                let _ = fs::remove_file(dir.join(format!("goes-{number}")));
                fs::write(dir.join(format!("new-{number}")), "").expect("written");
            }
            *seen.entry(name).or_insert(0) += 1;
        }
        for i in 0..5000 {
            assert_eq!(seen.get(&format!("stays-{i}")), Some(&1), "what stays is listed exactly once");
        }
        for (mark, name) in marks.iter().filter(|(_, name)| name.starts_with("stays")).rev() {
            libc::seekdir(stream, *mark);
            assert_eq!(next().as_ref(), Some(name), "a position leads back to its entry");
        }
        libc::rewinddir(stream);
        assert_eq!(next().as_deref(), Some("."));
        libc::closedir(stream);
    }
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn times_set_after_a_write_stay() {
    let volume = Volume::new();
    let mount = volume.mount();
    let mut file = File::create_new(mount.join("f")).expect("created");
    file.write_all(b"data").expect("written");
    let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    file.set_modified(when).expect("set");
    file.sync_all().expect("synced");
    drop(file);
    assert_eq!(fs::metadata(mount.join("f")).expect("there").modified().expect("a time"), when);
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::metadata(mount.join("f")).expect("there").modified().expect("a time"), when);
    mount.unmount();
}

#[test]
fn ranges_are_copied_without_reading() {
    let volume = Volume::new();
    let mount = volume.mount();
    let bytes: Vec<u8> = (0..9_000_000u32).map(|i| (i / 7) as u8).collect();
    fs::write(mount.join("from"), &bytes).expect("written");
    let from = File::open(mount.join("from")).expect("opened");
    let to = OpenOptions::new().read(true).write(true).create_new(true).open(mount.join("to")).expect("created");
    let (mut off_in, mut off_out) = (1000i64, 5i64);
    let mut left = 8_000_000usize;
    while left > 0 {
        // SAFETY: descriptors and offsets live through the call.
        let n = unsafe { libc::copy_file_range(from.as_raw_fd(), &mut off_in, to.as_raw_fd(), &mut off_out, left, 0) };
        assert!(n > 0, "{}", std::io::Error::last_os_error());
        left -= n as usize;
    }
    // The source may change or go: the copy is its own file.
    fs::write(mount.join("from"), "gone").expect("written");
    fs::remove_file(mount.join("from")).expect("removed");
    let copy = fs::read(mount.join("to")).expect("read");
    assert_eq!(&copy[5..], &bytes[1000..8_001_000]);
    drop((from, to));
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(&fs::read(mount.join("to")).expect("read")[5..], &bytes[1000..8_001_000]);
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn the_root_of_a_subdirectory_mount_hides_the_rest() {
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir_all(mount.join("home/agent")).expect("created");
    fs::write(mount.join("home/agent/file"), "x").expect("written");
    fs::write(mount.join("secret"), "x").expect("written");
    mount.unmount();
    let mount = volume.mount_at("sub", &["--subdir", "/home/agent"]);
    assert_eq!(fs::metadata(&mount.path).expect("there").ino(), 1);
    assert_eq!(fs::read_to_string(mount.join("file")).expect("read"), "x");
    assert!(!mount.join("../sub/secret").exists());
    fs::write(mount.join("new"), "y").expect("written");
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(fs::read_to_string(mount.join("home/agent/new")).expect("read"), "y");
    mount.unmount();
    let mount = volume.mount_at("ro", &["--read-only"]);
    assert_eq!(fs::write(mount.join("no"), "").expect_err("refused").raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read_to_string(mount.join("secret")).expect("read"), "x");
    mount.unmount();
}

/// Keeps `FromRawFd` honest: a descriptor handed over is closed once.
#[test]
fn a_handle_may_outlive_its_path_being_renamed() {
    let volume = Volume::new();
    let mount = volume.mount();
    let path = cstring(&mount.join("one"));
    // SAFETY: a NUL-terminated path; the descriptor is owned by the File alone.
    let mut file = unsafe { File::from_raw_fd(libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CREAT, 0o600)) };
    fs::rename(mount.join("one"), mount.join("two")).expect("renamed");
    file.write_all(b"written later").expect("written");
    drop(file);
    assert_eq!(fs::read_to_string(mount.join("two")).expect("read"), "written later");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn a_thousand_links_are_counted() {
    const LINKS: u64 = 1000;
    let volume = Volume::new();
    let mount = volume.mount();
    fs::write(mount.join("f"), "x").expect("written");
    for i in 1..LINKS {
        fs::hard_link(mount.join("f"), mount.join(format!("l{i}"))).expect("linked");
    }
    assert_eq!(fs::metadata(mount.join("f")).expect("there").nlink(), LINKS);
    for i in 1..LINKS {
        fs::remove_file(mount.join(format!("l{i}"))).expect("removed");
    }
    assert_eq!(fs::metadata(mount.join("f")).expect("there").nlink(), 1);
    mount.unmount();
    volume.assert_clean();
}
