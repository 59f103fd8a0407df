//! Installs what the tests need: distribution packages (as root on Debian) and test programs from crates.io, pinned.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program the tests run, and the Debian package that has it.
const PROGRAMS: &[(&str, &str)] = &[
    ("fusermount3", "fuse3"),
    ("git", "git"),
    ("rsync", "rsync"),
    ("sqlite3", "sqlite3"),
    ("setfacl", "acl"),
    ("tar", "tar"),
    ("setfattr", "attr"),
    ("redis-server", "redis-server"),
    ("redis-sentinel", "redis-sentinel"),
    ("redis-cli", "redis-tools"),
    ("openssl", "openssl"),
];

/// A header that the test programs need to compile.
const HEADERS: &[(&str, &str)] = &[("/usr/include/sys/acl.h", "libacl1-dev")];

/// Test programs on crates.io, with the version the expected results belong to.
const CRATES: &[(&str, &str)] = &[("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Installs whatever is missing. Where it cannot, the error names the command that would.
pub fn install(root: &Path) -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !found(program))
        .chain(HEADERS.iter().filter(|(path, _)| !Path::new(path).exists()))
        .map(|(_, package)| *package)
        .collect();
    if !missing.is_empty() {
        install_packages(&missing)?;
    }
    if !Path::new("/dev/fuse").exists() {
        bail!("/dev/fuse is missing: load the fuse kernel module (modprobe fuse)");
    }
    for user in ["nobody", "tests"] {
        // pjdfstest switches to two unprivileged users.
        if !succeeds(Command::new("id").arg(user)) && is_root() {
            crate::run(Command::new("useradd").args(["--system", "--user-group", "--shell", "/usr/sbin/nologin", user]))?;
        }
    }
    let tools = root.join("target/tools");
    for (name, version) in CRATES {
        let stamp = tools.join(format!(".{name}-{version}"));
        if stamp.exists() && tools.join("bin").join(name).exists() {
            continue;
        }
        crate::run(
            crate::cargo(&["install", "--locked", "--force", "--quiet"]).arg(format!("{name}@{version}")).arg("--root").arg(&tools),
        )?;
        std::fs::write(stamp, "")?;
    }
    Ok(())
}

fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_root() || !found("apt-get") {
        bail!("the tests need these packages: run `apt-get install -y {list}` as root (or your distribution's equivalent), then try again");
    }
    eprintln!("installing {list}");
    crate::run(Command::new("apt-get").args(["update", "-qq"]))?;
    crate::run(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null()),
    )
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn found(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).exists()))
        || ["/sbin", "/usr/sbin", "/bin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
