//! The same random operations on a mount and on a plain directory of the host: same answers, same tree.

use crate::support::{Dice, Volume, seed, size};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Paths of the play: few, so that operations meet.
fn path(dice: &mut Dice) -> PathBuf {
    let depth = 1 + dice.below(3);
    (0..depth).map(|_| ["a", "b", "c", "d"][dice.below(4)]).collect()
}

fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("errno {:?}", error.raw_os_error()),
    }
}

/// One random operation below `root`; the dice decide the same for every root.
fn step(root: &Path, dice: &mut Dice) -> (String, String) {
    let kind = dice.below(16);
    let (one, two) = (path(dice), path(dice));
    let (a, b) = (root.join(&one), root.join(&two));
    let (offset, len) = (dice.below(200_000) as u64, dice.below(70_000));
    let bytes = dice.bytes(len);
    let (name, result) = match kind {
        0 | 1 => ("create", outcome(OpenOptions::new().write(true).create_new(true).open(&a).map(drop))),
        2 | 3 => ("mkdir", outcome(fs::create_dir(&a))),
        4 | 5 => ("write", outcome(OpenOptions::new().write(true).open(&a).and_then(|f| f.write_all_at(&bytes, offset)))),
        6 => (
            "append",
            outcome(OpenOptions::new().append(true).open(&a).and_then(|mut f| io::Write::write_all(&mut f, &bytes[..len.min(300)]))),
        ),
        7 => ("truncate", outcome(OpenOptions::new().write(true).open(&a).and_then(|f| f.set_len(offset)))),
        8 => ("unlink", outcome(fs::remove_file(&a))),
        9 => ("rmdir", outcome(fs::remove_dir(&a))),
        10 | 11 => ("rename", outcome(fs::rename(&a, &b))),
        12 => ("link", outcome(fs::hard_link(&a, &b))),
        13 => ("symlink", outcome(symlink(&one, &b))),
        14 => ("chmod", outcome(fs::set_permissions(&a, fs::Permissions::from_mode(0o600 + (offset % 64) as u32)))),
        _ => ("read", outcome(fs::read(&a).map(|bytes| (bytes.len(), bytes.iter().map(|b| u64::from(*b)).sum::<u64>())))),
    };
    (format!("{name} {} {} {offset} {len}", one.display(), two.display()), result)
}

/// Everything a program can see of a tree but times and inode numbers.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut seen = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("listed") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).expect("there");
            let what = if meta.is_dir() {
                dirs.push(path.clone());
                format!("dir nlink {}", meta.nlink())
            } else if meta.is_symlink() {
                format!("link to {}", fs::read_link(&path).expect("a target").display())
            } else {
                let bytes = fs::read(&path).expect("readable");
                format!("{} bytes {:08x} nlink {}", bytes.len(), crc32fast::hash(&bytes), meta.nlink())
            };
            seen.insert(path.strip_prefix(root).expect("below").to_path_buf(), format!("{:o} {what}", meta.mode()));
        }
    }
    seen
}

#[test]
fn same_answers_and_same_tree_as_the_host() {
    let seed = seed("differential");
    let operations = size(4000, 300_000);
    let volume = Volume::new();
    let mount = volume.mount();
    let (host, ours) = (volume.temp.path().join("host"), mount.join("play"));
    fs::create_dir(&host).expect("created");
    fs::create_dir(&ours).expect("created");
    let (mut for_host, mut for_ours) = (Dice::new(seed), Dice::new(seed));
    for i in 0..operations {
        let (what, expected) = step(&host, &mut for_host);
        let (_, got) = step(&ours, &mut for_ours);
        assert_eq!(got, expected, "operation {i}: {what}");
        if i % 1000 == 999 {
            assert_eq!(tree(&ours), tree(&host), "after operation {i}");
        }
    }
    mount.unmount();
    let mount = volume.mount();
    assert_eq!(tree(&mount.join("play")), tree(&host), "after a remount");
    println!("differential: {operations} operations, seed {seed}: same answers, same tree");
    mount.unmount();
    volume.assert_clean();
}
