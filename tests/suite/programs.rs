//! Real programs on a mount: git, SQLite, rsync, tar, cargo, npm.

use crate::support::{Volume, finish, sh, size, worker, worker_arg};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A git repository of `count` files outside the mount.
fn repository(at: &Path, count: usize) {
    std::fs::create_dir_all(at).expect("created");
    for i in 0..count {
        let dir = at.join(format!("dir{}/sub{}", i % 97, i % 11));
        std::fs::create_dir_all(&dir).expect("created");
        std::fs::write(dir.join(format!("file{i}.txt")), format!("file {i}\n").repeat(1 + i % 200)).expect("written");
    }
    // Ten thousand loose objects would start a collection in the background that takes them away from under the clone.
    sh(
        at,
        "git init -q -b main . && git config gc.auto 0 && git add -A && git -c user.name=t -c user.email=t@example.org commit -qm first",
    );
}

#[test]
fn git() {
    let volume = Volume::new();
    let mount = volume.mount();
    let origin = volume.temp.path().join("origin");
    let count = size(1000, 10_000);
    repository(&origin, count);
    let started = std::time::Instant::now();
    sh(&mount.path, &format!("git clone -q {} clone", origin.display()));
    println!("git clone of {count} files: {:.1} s", started.elapsed().as_secs_f64());
    let clone = mount.join("clone");
    assert_eq!(sh(&clone, "git status --porcelain"), "");
    sh(&clone, "git worktree add -q ../tree -b work && git -C ../tree status --porcelain | wc -l | grep -qx 0");
    sh(
        &clone,
        "git config gc.auto 0; git config user.name t; git config user.email t@example.org; for i in 1 2 3 4 5; do echo $i >> dir1/new; git add -A; git commit -qm $i; done",
    );
    sh(&clone, "git gc -q --aggressive --prune=now && git fsck --full --strict && git log --oneline | wc -l | grep -qx 6");
    sh(
        &mount.path,
        &format!(
            "git clone -q clone again && (diff -r --exclude=.git {} again || true) | grep -qx 'Only in again/dir1: new'",
            origin.display()
        ),
    );
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(sh(&mount.join("clone"), "git fsck --full && git status --porcelain"), "");
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn rsync_and_tar() {
    let volume = Volume::new();
    let mount = volume.mount();
    let count = size(3000, 50_000);
    let origin = volume.temp.path().join("origin");
    std::fs::create_dir(&origin).expect("created");
    for i in 0..count {
        let dir = origin.join(format!("d{}", i % 211));
        std::fs::create_dir_all(&dir).expect("created");
        std::fs::write(dir.join(format!("f{i}")), vec![i as u8; 37 * (i % 300)]).expect("written");
    }
    sh(&origin, "ln -s d1 link; mkfifo pipe; ln d0/f0 hard; head -c 20000000 /dev/urandom > big");
    let temp = volume.temp.path().display().to_string();
    let at = mount.path.display();
    sh(
        &mount.path,
        &format!(
            "rsync -aH {temp}/origin/ {at}/copy/ && rsync -aH --checksum {at}/copy/ {temp}/back/ && diff -r --no-dereference --exclude=pipe {temp}/origin {temp}/back"
        ),
    );
    assert_eq!(sh(&mount.path, &format!("rsync -aHn --checksum --itemize-changes {temp}/origin/ {at}/copy/")), "");
    sh(&origin, "tar cf ../all.tar .");
    let started = std::time::Instant::now();
    sh(&mount.path, &format!("mkdir x && tar xf {temp}/all.tar -C x"));
    let extracted = started.elapsed().as_secs_f64();
    sh(&mount.path, &format!("diff -r --no-dereference --exclude=pipe {temp}/origin x"));
    let started = std::time::Instant::now();
    sh(&mount.path, "rm -rf x");
    println!("tar of {count} files: extracted in {extracted:.1} s, removed in {:.1} s", started.elapsed().as_secs_f64());
    assert!(!mount.join("x").exists());
    mount.unmount();
    volume.assert_clean();
}

#[test]
fn cargo_build() {
    let volume = Volume::new();
    let mount = volume.mount();
    sh(
        &mount.path,
        "mkdir -p hello/src && cd hello && printf '[package]\\nname = \"hello\"\\nversion = \"0.1.0\"\\nedition = \"2024\"\\n[workspace]\\n' > Cargo.toml
         echo 'fn main() { println!(\"hello from the volume\"); }' > src/main.rs
         CARGO_TARGET_DIR=target cargo build -q --offline && ./target/debug/hello | grep -qx 'hello from the volume'
         touch src/main.rs && CARGO_TARGET_DIR=target cargo build -q --offline && ./target/debug/hello",
    );
    mount.unmount();
    volume.assert_clean();
}

/// Needs a package registry, so only in the long runs.
#[test]
fn npm_install() {
    if std::env::var_os("PANDO_SOAK").is_none() {
        return;
    }
    let volume = Volume::new();
    let mount = volume.mount();
    let started = std::time::Instant::now();
    sh(
        &mount.path,
        "mkdir app && cd app && npm init -y >/dev/null && npm install --no-audit --no-fund express typescript eslint webpack >/dev/null 2>&1 && node -e 'require(\"express\"); require(\"webpack\")' && npx tsc --version",
    );
    println!("npm install: {:.1} s, {} files", started.elapsed().as_secs_f64(), sh(&mount.path, "find app -type f | wc -l").trim());
    sh(&mount.path, "cd app && npm ci --no-audit --no-fund >/dev/null 2>&1 && node -e 'require(\"express\")'");
    mount.unmount();
    volume.assert_clean();
}

/// In a worker: inserts rows one transaction each.
pub fn sqlite_worker() {
    let (path, id, mode, count) = (worker_arg(0), worker_arg(1), worker_arg(2), worker_arg(3).parse::<i64>().expect("a number"));
    let db = Connection::open(path).expect("opened");
    db.busy_timeout(Duration::from_secs(120)).expect("set");
    db.pragma_update(None, "journal_mode", &mode).expect("set");
    db.pragma_update(None, "synchronous", "full").expect("set");
    for i in 0..count {
        db.execute("insert into t values (?, ?, ?)", (&id, i, "x".repeat((i as usize * 37) % 500))).expect("inserted");
    }
}

/// Writers on the given paths of one database; every row must be there and the file whole.
pub fn sqlite_writers(paths: &[PathBuf], mode: &str, count: usize) {
    {
        let db = Connection::open(&paths[0]).expect("opened");
        db.pragma_update(None, "journal_mode", mode).expect("set");
        db.execute_batch("create table t(writer, i, x); create index n on t(i)").expect("created");
    }
    let started = std::time::Instant::now();
    let children: Vec<_> = paths
        .iter()
        .enumerate()
        .map(|(id, path)| {
            let (id, count) = (id.to_string(), count.to_string());
            worker("sqlite", &[path.as_os_str(), id.as_ref(), mode.as_ref(), count.as_ref()]).spawn().expect("started")
        })
        .collect();
    children.into_iter().for_each(|child| {
        finish(child);
    });
    let rate = (paths.len() * count) as f64 / started.elapsed().as_secs_f64();
    println!("sqlite, journal {mode}, {} writers: {rate:.0} transactions/s", paths.len());
    for path in paths {
        let db = Connection::open(path).expect("opened");
        let whole: String = db.query_row("pragma integrity_check", [], |r| r.get(0)).expect("checked");
        assert_eq!(whole, "ok");
        let rows: usize = db.query_row("select count(*) from t", [], |r| r.get::<_, i64>(0)).expect("counted") as usize;
        assert_eq!(rows, paths.len() * count, "rows lost");
    }
}

#[test]
fn sqlite_four_writers() {
    let volume = Volume::new();
    let mount = volume.mount();
    for mode in ["delete", "wal"] {
        let path = mount.join(format!("{mode}.db"));
        sqlite_writers(&vec![path; 4], mode, size(50, 1000));
    }
    mount.unmount();
    volume.assert_clean();
}
