//! `pando dump` and `pando load` as commands, beside a mount that is in use.

use crate::support::{PANDO, Volume, run, text};
use std::fs;
use std::process::{Command, Output};

fn pando(args: &[&str]) -> Output {
    run(Command::new(PANDO).args(args))
}

#[test]
fn a_dump_of_a_volume_in_use_loads_with_all_its_data() {
    let volume = Volume::new();
    let mount = volume.mount();
    fs::create_dir(mount.join("s")).expect("a directory");
    fs::write(mount.join("s/small"), "small").expect("writes");
    fs::write(mount.join("large"), vec![7; 200_000]).expect("writes");
    fs::File::open(mount.join("s/small")).and_then(|file| file.sync_all()).expect("syncs");
    fs::File::open(mount.join("large")).and_then(|file| file.sync_all()).expect("syncs");
    let dir = volume.dir();
    let dir = dir.to_str().expect("UTF-8");
    for (name, more) in [("d.json", vec![]), ("d.json.gz", vec![]), ("d.zstd", vec!["--binary"]), ("d.bin", vec!["--binary"])] {
        let file = volume.temp.path().join(name);
        let file = file.to_str().expect("UTF-8");
        let output = pando(&[&["dump", dir, file], &more[..]].concat());
        assert!(output.status.success(), "{name}: {}", text(&output));
        let copy = Volume::new();
        let target = copy.dir();
        let target = target.to_str().expect("UTF-8");
        let output = pando(&[&["load", target, file], &more[..]].concat());
        assert!(output.status.success(), "{name}: {}", text(&output));
        let again = pando(&[&["load", target, file], &more[..]].concat());
        assert!(!again.status.success() && text(&again).contains("is used by volume"), "{}", text(&again));
        // The data is in the objects, also that of small blocks.
        let copied = run(Command::new("cp").arg("-r").arg(format!("{dir}/objects")).arg(target));
        assert!(copied.status.success());
        copy.assert_clean();
        let loaded = copy.mount();
        assert_eq!(fs::read(loaded.join("s/small")).expect("reads"), b"small", "{name}");
        assert_eq!(fs::read(loaded.join("large")).expect("reads"), vec![7; 200_000], "{name}");
        loaded.unmount();
    }
    assert_eq!(fs::read(mount.join("s/small")).expect("reads"), b"small");
    mount.unmount();
    volume.assert_clean();
}
