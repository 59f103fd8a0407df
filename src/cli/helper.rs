//! Called by mount(8) for an entry of `/etc/fstab` (cli §8.6): `mount.juicefs SOURCE MOUNTPOINT [-sfnv] -o OPTIONS`.

use crate::cli::args::{Stop, option_takes_value};
use clap::Command;

/// Words of `/etc/fstab` and mount(8) that mean nothing to a filesystem.
pub const FSTAB_WORDS: &[&str] = &[
    "_netdev",
    "nofail",
    "rw",
    "defaults",
    "remount",
    "background",
    "noauto",
    "auto",
    "user",
    "users",
    "owner",
    "group",
    "nouser",
    "nonempty",
    "async_dio",
    "relatime",
    "norelatime",
];
/// Variable by which a process says that it was called this way.
const VARIABLE: &str = "CALL_VIA_MOUNT";

/// Whether a word of `/etc/fstab` means nothing to us.
pub fn is_fstab_word(word: &str) -> bool {
    FSTAB_WORDS.contains(&word) || word.starts_with("x-") || word.starts_with("comment=")
}

/// Whether this process was called by mount(8).
pub fn called(argv0: &str) -> bool {
    let name = argv0.rsplit('/').next().unwrap_or_default();
    matches!(name, "mount.juicefs" | "mount.pando") || std::env::var_os(VARIABLE).is_some_and(|value| !value.is_empty())
}

/// The command line of `mount` that means the same. `program` is the definition of all commands and options.
pub fn mount_line(program: &Command, line: &[String]) -> Result<Vec<String>, Stop> {
    let [source, mountpoint, rest @ ..] = line else { return Err(Stop::Help(None)) };
    let mut mapped = vec!["mount".to_string(), "--background".into()];
    let mut kernel = Vec::new();
    let mut words = rest.iter();
    // What stands before -o is for mount(8) itself.
    while let Some(word) = words.next() {
        if word != "-o" {
            continue;
        }
        for option in words.next().map_or("", String::as_str).split(',').filter(|option| !option.is_empty()) {
            if is_fstab_word(option) {
                continue;
            }
            let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            let name = match name {
                "attrcacheto" => "attr-cache",
                "entrycacheto" => "entry-cache",
                "direntrycacheto" => "dir-entry-cache",
                name => name,
            };
            // Single letters are options of mount(8), or nothing.
            match option_takes_value(program, "mount", name).filter(|_| name.len() > 1) {
                None => kernel.push(option.to_string()),
                Some(true) if value.is_none() => return Err(Stop::Wrong(format!("option {name} requires a value"))),
                Some(_) => mapped.push(format!("--{name}{}", value.map(|value| format!("={value}")).unwrap_or_default())),
            }
        }
    }
    if !kernel.is_empty() {
        mapped.extend(["-o".into(), kernel.join(",")]);
    }
    mapped.extend(["--".into(), source.clone(), mountpoint.clone()]);
    Ok(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(line: &str) -> Result<String, Stop> {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        mount_line(&crate::cli::Cli::command(), &words).map(|words| words.join(" "))
    }

    #[test]
    fn options_of_fstab_become_options_of_mount() {
        for (line, mapped) in [
            ("/vol /mnt", "mount --background -- /vol /mnt"),
            ("/vol /mnt -s -n -o rw", "mount --background -- /vol /mnt"),
            (
                "/vol /mnt -o ro,noatime,cache-size=5,_netdev,nofail,x-systemd.automount,comment=a,user",
                "mount --background --cache-size=5 -o ro,noatime -- /vol /mnt",
            ),
            ("/vol /mnt -o attrcacheto=1,read-only,subdir=/a", "mount --background --attr-cache=1 --read-only --subdir=/a -- /vol /mnt"),
            ("/vol /mnt -o log-id=x,d", "mount --background --log-id=x -o d -- /vol /mnt"),
        ] {
            assert_eq!(run(line).expect(line), mapped);
        }
        assert_eq!(run("/vol /mnt -o cache-size"), Err(Stop::Wrong("option cache-size requires a value".into())));
        assert_eq!(run("/vol"), Err(Stop::Help(None)));
    }
}
