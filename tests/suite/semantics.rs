//! Volumes with a trash, quotas and POSIX ACLs on real mounts.

use crate::support::{PANDO, Volume, run, text};
use pando::meta::codec::encode_quota;
use pando::meta::key;
use pando::meta::setting::Setting;
use pando::meta::store::embedded::EmbeddedStore;
use pando::meta::store::{Commit, Query, Store, Value, Write};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

impl Volume {
    /// A formatted volume whose setting was changed as another client would.
    pub fn with(fields: &[(&str, serde_json::Value)]) -> Volume {
        let volume = Volume::new();
        let output = run(Command::new(PANDO).arg("format").arg(volume.dir()).arg("test-volume"));
        assert!(output.status.success(), "format: {}", text(&output));
        let Value::Bytes(Some(setting)) = volume.read(Query::Get(key::SETTING)) else { panic!("no setting") };
        let mut setting = Setting::parse(&setting).expect("parses");
        for (field, value) in fields {
            setting.set(field, value.clone());
        }
        volume.write(&[Write::Set(key::SETTING, setting.encode().into())]);
        volume
    }

    fn store<T>(&self, work: impl AsyncFnOnce(&EmbeddedStore) -> T) -> T {
        let store = EmbeddedStore::open(&self.dir()).expect("opens");
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(work(&store))
    }

    fn read(&self, query: Query) -> Value {
        self.store(async |store| store.read(&[query]).await.expect("reads").remove(0))
    }

    fn write(&self, writes: &[Write]) {
        self.store(async |store| assert!(matches!(store.commit(&[], writes, &[]).await, Ok(Commit::Done { .. }))));
    }
}

fn sh(dir: &Path, script: &str) -> String {
    let output = run(Command::new("bash").arg("-euc").arg(script).current_dir(dir));
    assert!(output.status.success(), "{script}: {}", text(&output));
    text(&output)
}

fn errno(error: &std::io::Error) -> Option<i32> {
    error.raw_os_error()
}

#[test]
fn deleted_files_are_in_the_trash_and_gone_for_applications() {
    let volume = Volume::with(&[("TrashDays", 1.into())]);
    let mount = volume.mount();
    let path = mount.join("a");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).expect("created");
    file.write_all(&[7; 5000]).expect("written");
    fs::hard_link(&path, mount.join("b")).expect("linked");
    fs::remove_file(&path).expect("removed");
    assert_eq!((file.metadata().expect("stat").nlink(), fs::metadata(mount.join("b")).expect("stat").nlink()), (1, 1));
    fs::remove_file(mount.join("b")).expect("removed");
    assert_eq!(file.metadata().expect("stat").nlink(), 0);
    // Everything works that works on an unlinked file.
    file.set_permissions(fs::Permissions::from_mode(0o600)).expect("fchmod");
    std::os::unix::fs::fchown(&file, Some(5), Some(5)).expect("fchown");
    file.set_modified(std::time::UNIX_EPOCH).expect("futimens");
    file.set_len(6000).expect("ftruncate");
    file.write_all_at(b"after", 5990).expect("written");
    file.sync_all().expect("synced");
    let mut tail = [0; 10];
    file.read_exact_at(&mut tail, 5990).expect("read");
    assert_eq!(&tail, b"after\0\0\0\0\0");
    drop(file);
    sh(&mount.path, "mkdir -p d/e; echo x > d/e/f; echo y > d/g; mv d/g d/e/f; rm -r d; ls -A | wc -l | grep -qx 0");
    mount.unmount();
    volume.assert_clean();
    let Value::Pairs(hours) = volume.read(Query::HGetAll(key::dir(pando::types::Ino::TRASH))) else { panic!("no trash") };
    assert!(!hours.is_empty());
}

#[test]
fn directories_and_owners_are_held_to_their_quotas() {
    let volume = Volume::with(&[("UserGroupQuota", true.into())]);
    let mount = volume.mount();
    fs::create_dir(mount.join("home")).expect("created");
    let dir = fs::metadata(mount.join("home")).expect("stat").ino();
    mount.unmount();
    let field = key::decimal(dir);
    volume.write(&[
        Write::HSet(key::DIR_QUOTA, field.clone(), encode_quota(1 << 20, 4)),
        Write::HSet(key::DIR_QUOTA_USED_SPACE, field.clone(), "0".into()),
        Write::HSet(key::DIR_QUOTA_USED_INODES, field.clone(), "0".into()),
        Write::HSet(key::USER_QUOTA, "999".into(), encode_quota(-1, 1)),
        Write::HSet(key::USER_QUOTA_USED_SPACE, "999".into(), "0".into()),
        Write::HSet(key::USER_QUOTA_USED_INODES, "999".into(), "0".into()),
    ]);
    let mount = volume.mount_at("home", &["--subdir", "home"]);
    let mut file = File::create(mount.join("big")).expect("created");
    file.write_all(&vec![1; 1 << 20]).expect("fits");
    // The refusal comes when the data are buffered, or at the latest when they are stored.
    let error = file.write_all(b"x").and_then(|()| file.sync_all()).expect_err("is full");
    assert_eq!(errno(&error), Some(libc::EDQUOT), "{error}");
    drop(file);
    let df = sh(&mount.path, "df -B1 --output=size,used,avail . | tail -1");
    assert_eq!(df.split_whitespace().collect::<Vec<_>>(), ["1048576", "1048576", "0"]);
    fs::remove_file(mount.join("big")).expect("removed");
    for name in ["a", "b", "c", "d"] {
        File::create(mount.join(name)).expect("four inodes fit");
    }
    assert_eq!(File::create(mount.join("e")).expect_err("a fifth does not").kind(), ErrorKind::QuotaExceeded);
    fs::rename(mount.join("a"), mount.join("b")).expect("replacing needs no room");
    std::os::unix::fs::chown(mount.join("b"), Some(999), None).expect("given away");
    mount.unmount();
    volume.assert_clean();
    assert_eq!(volume.read(Query::HGet(key::USER_QUOTA_USED_INODES, "999".into())), Value::Bytes(Some("1".into())));
    assert_eq!(volume.read(Query::HGet(key::DIR_QUOTA_USED_INODES, field.clone())), Value::Bytes(Some("3".into())));
    assert_eq!(volume.read(Query::HGet(key::DIR_QUOTA_USED_SPACE, field)), Value::Bytes(Some("12288".into())));
}

#[test]
fn acls_are_kept_and_checked() {
    let volume = Volume::with(&[("EnableACL", true.into()), ("TrashDays", 1.into())]);
    let mount = volume.mount();
    let script = r#"
        umask 027
        echo secret > f; chmod 640 f
        setfacl -m u:tests:rw f
        getfacl -cnE f > ../got
        printf 'user::rw-\nuser:%s:rw-\ngroup::r--\nmask::rw-\nother::---\n\n' "$(id -u tests)" > ../want
        diff ../want ../got
        stat -c %a f | grep -qx 660
        chmod 600 f; getfacl -c f | grep -q 'user:tests:rw-.*#effective:---'
        chmod 660 f
        mkdir d; setfacl -d -m u:tests:rwx,g::r-x,o::--- d
        echo x > d/f; mkdir d/sub; ln -s f d/l
        getfacl -cnE d/f | grep -qx 'mask::rw-'
        stat -c %a d/f | grep -qx 660
        getfacl -cn d/sub | grep -qx "default:user:$(id -u tests):rwx"
        stat -c %a d/sub | grep -qx 770
        mkdir plain; stat -c %a plain | grep -qx 750
        setfacl -b f; stat -c %a f | grep -qx 640; getfacl -cn f | grep -c user: | grep -qx 1
        setfacl -k d; echo y > d/g; stat -c %a d/g | grep -qx 640
        cp -p d/f copied; getfacl -c copied | grep -q user:tests:
        setfacl -m u:tests:rw f
    "#;
    sh(&mount.path, script);
    // Another user, whom only the ACL lets in. (The mount is for its owner unless others are allowed.)
    mount.unmount();
    let mount = volume.mount_at("mnt", &["-o", "allow_other"]);
    fs::set_permissions(volume.temp.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let as_tests = |script: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "tests", "--regid", "tests", "--clear-groups", "bash", "-c", script]).current_dir(&mount.path);
        run(&mut command).status.success()
    };
    assert!(as_tests("cat f && echo more >> f"), "the ACL grants it");
    sh(&mount.path, "setfacl -m u:tests:--- f");
    assert!(!as_tests("cat f"), "the ACL denies it");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn a_logged_volume_is_mounted_read_only_or_not_at_all() {
    let volume = Volume::with(&[("ChangeLog", true.into())]);
    let path = volume.temp.path().join("mnt");
    fs::create_dir(&path).expect("created");
    let output = run(Command::new(PANDO).arg("mount").arg(volume.dir()).arg(&path));
    assert!(!output.status.success() && text(&output).contains("ChangeLog"), "{}", text(&output));
    let mount = volume.mount_at("mnt", &["--read-only"]);
    assert_eq!(fs::read_dir(&mount.path).expect("listed").count(), 0);
    mount.unmount();
}
