//! The lines of an agent platform as they stand, with this program under the name `juicefs`: an engine's mount, and agents in namespaces of
//! their own with a home and further subdirectories mounted in it.

use crate::s3_server::{ACCESS_KEY, SECRET_KEY, Server};
use crate::servers::RedisServer;
use crate::support::{Mount, PANDO, Volume, die_with_parent, eventually, is_mounted, run, sh, text};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// How many agents there are; one of them is killed.
const AGENTS: usize = 4;

/// What an agent does in its namespaces. `$1`: who it is; `$URL`, `$CACHE`, `$HOMES`, `$RUN`: where things are. It says `ready`, waits to be told to stop, works once
/// more and unmounts everything.
const AGENT: &str = r#"
set -euo pipefail
home=$HOMES/$1
mount_at() { juicefs mount --background --no-usage-report --cache-dir "$CACHE" --cache-size 512 --log "$RUN/$1.log" "${@:3}" --subdir "$1" "$URL" "$2"; }
mount_at /sandboxes/$1 "$home"
mountpoint -q "$home"
mkdir -p "$home"/{workspace,memory,shared} "$home/.config/tool"
echo set > "$home/.config/tool/settings"
mount_at /sandboxes/$1/w "$home/workspace" & first=$!
mount_at /memory/$1 "$home/memory" & second=$!
mount_at /shared "$home/shared" --read-only & third=$!
wait $first; wait $second; wait $third
for at in workspace memory shared; do mountpoint -q "$home/$at"; done
test "$(cat "$home/shared/greeting")" = hello
if touch "$home/shared/no" 2>/dev/null; then echo "a read-only mount was written"; exit 1; fi
cd "$home/workspace"
git init -q repo
cd repo
git config user.name agent
git config user.email agent@example.org
for i in $(seq 20); do echo "$1 $i" > f$i; done
git add -A
git commit -qm first
dd if=/dev/urandom of="$home/memory/notes" bs=10k count=1 conv=fsync status=none
sha256sum < "$home/memory/notes" > "$RUN/$1.sum"
touch "$RUN/$1.ready"
until test -e "$RUN/stop"; do sleep 0.05; done
echo late > late
git add -A
git commit -qm second
git fsck --strict
cd /
for at in workspace memory shared; do juicefs umount "$home/$at"; done
juicefs umount "$home"
"#;

struct Platform {
    temp: TempDir,
    redis: RedisServer,
    s3: Server,
}

impl Platform {
    fn new() -> Platform {
        let temp = tempfile::Builder::new().prefix("pando-fleet-").tempdir().expect("a temporary directory");
        fs::create_dir_all(temp.path().join("s3")).expect("made");
        std::os::unix::fs::symlink(PANDO, temp.path().join("juicefs")).expect("linked");
        let s3 = Server::start(&temp.path().join("s3"));
        Platform { redis: RedisServer::with(&[]), s3, temp }
    }

    fn url(&self) -> String {
        self.redis.url(2)
    }

    fn path(&self, name: &str) -> String {
        self.temp.path().join(name).display().to_string()
    }

    fn juicefs(&self, line: &str) -> Command {
        let mut command = Command::new(self.path("juicefs"));
        command.args(line.split_whitespace());
        command
    }

    fn format(&self) -> String {
        let line = format!(
            "format --storage s3 --bucket {} --access-key {ACCESS_KEY} --secret-key {SECRET_KEY} --trash-days 7 {} djinnbot",
            self.s3.bucket("djinnbot"),
            self.url()
        );
        let output = run(&mut self.juicefs(&line));
        assert!(output.status.success(), "{}", text(&output));
        text(&run(Command::new("redis-cli").args(["-u", &self.url(), "get", "setting"])))
    }

    /// Runs an agent in mount and process namespaces of its own: what it mounts nobody else sees, and it dies with all it started.
    fn agent(&self, name: &str) -> Child {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-xc", AGENT, "agent", name]);
        let path = format!("{}:{}", self.temp.path().display(), std::env::var("PATH").expect("set"));
        command.env("PATH", path).env("URL", self.url()).env("CACHE", self.path("cache"));
        command.env("HOMES", self.path("homes")).env("RUN", self.path("run"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        fs::create_dir_all(self.temp.path().join("homes").join(name)).expect("made");
        die_with_parent(&mut command);
        command.spawn().expect("util-linux is installed")
    }
}

fn ended_well(agent: Child) {
    let output = agent.wait_with_output().expect("a child of ours");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn the_lines_of_a_platform_work_as_they_stand() {
    let platform = Platform::new();
    let made = platform.format();
    assert_eq!(platform.format(), made, "formatting again changes nothing");
    let jfs = platform.temp.path().join("jfs");
    for name in ["jfs", "run", "homes"] {
        fs::create_dir_all(platform.temp.path().join(name)).expect("made");
    }
    let line = format!(
        "mount --cache-dir {} --cache-size 20480 --backup-meta 3600 --no-usage-report --buffer-size 300 --prefetch 1 --max-uploads 20 --attr-cache 1 --entry-cache 1 --dir-entry-cache 1 {} {}",
        platform.path("engine-cache"),
        platform.url(),
        jfs.display()
    );
    let mut engine = platform.juicefs(&line);
    die_with_parent(&mut engine);
    let log = fs::File::create(platform.temp.path().join("engine.log")).expect("made");
    let mut engine = engine.stdout(log.try_clone().expect("shared")).stderr(log).spawn().expect("starts");
    let _unmounted = Detached(&jfs);
    eventually("the engine's mount", || is_mounted(&jfs));
    fs::create_dir(jfs.join("shared")).expect("made");
    fs::write(jfs.join("shared/greeting"), "hello\n").expect("written");

    let names: Vec<String> = (0..AGENTS).map(|number| format!("agent{number}")).collect();
    let mut agents: Vec<Child> = names.iter().map(|name| platform.agent(name)).collect();
    for (name, agent) in names.iter().zip(&mut agents) {
        let ready = platform.temp.path().join("run").join(format!("{name}.ready"));
        eventually("the agent has done its first work", || ready.exists() || agent.try_wait().is_ok_and(|ended| ended.is_some()));
        if !ready.exists() {
            let output = agents.swap_remove(names.iter().position(|n| n == name).expect("it is one of them")).wait_with_output();
            panic!("{name} ended: {}", text(&output.expect("a child of ours")));
        }
    }
    // One dies with everything it had mounted; what it synced is there, and nobody else notices.
    let mut killed = agents.remove(0);
    killed.kill().expect("alive");
    killed.wait().expect("reaped");
    let sum = |name: &str| sh(&jfs, &format!("sha256sum < memory/{name}/notes"));
    for name in &names {
        assert_eq!(sum(name), fs::read_to_string(platform.temp.path().join("run").join(format!("{name}.sum"))).expect("a sum"), "{name}");
        assert_eq!(fs::read_to_string(jfs.join(format!("sandboxes/{name}/.config/tool/settings"))).expect("there"), "set\n");
        sh(&jfs, &format!("git -C sandboxes/{name}/w/repo -c safe.directory='*' fsck --strict"));
    }
    // It starts again at once where it was.
    fs::remove_file(platform.temp.path().join("run/agent0.ready")).expect("there");
    sh(&jfs, "rm -rf sandboxes/agent0/w/repo");
    agents.push(platform.agent("agent0"));
    let ready = platform.temp.path().join("run/agent0.ready");
    eventually("the agent is back", || ready.exists());

    fs::write(platform.temp.path().join("run/stop"), "").expect("written");
    agents.into_iter().for_each(ended_well);
    for name in &names {
        let commits = sh(&jfs, &format!("git -C sandboxes/{name}/w/repo -c safe.directory='*' rev-list --count HEAD"));
        assert_eq!(commits.trim(), "2", "{name}");
    }
    let output = run(&mut platform.juicefs(&format!("umount {}", jfs.display())));
    assert!(output.status.success(), "{}", text(&output));
    let ended = engine.wait().expect("a child of ours");
    assert!(ended.success(), "{}", fs::read_to_string(platform.temp.path().join("engine.log")).unwrap_or_default());
    let output = run(&mut platform.juicefs(&format!("fsck {}", platform.url())));
    assert!(output.status.success(), "{}", text(&output));
}

/// Takes a mount away however the test ends.
struct Detached<'a>(&'a Path);

impl Drop for Detached<'_> {
    fn drop(&mut self) {
        if is_mounted(self.0) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
}

/// What is mounted on an entry goes with the entry, if the kernel is told to throw it away.
#[test]
fn what_others_change_leaves_mounts_inside_a_mount_alone() {
    let volume = Volume::served(0);
    let [home, other] = ["home", "other"].map(|name| volume.mount_at(name, &[]));
    fs::create_dir(home.join("inside")).expect("made");
    fs::create_dir(home.join("elsewhere")).expect("made");
    let inside = Mount::start(
        &volume.dir(),
        &home.join("inside"),
        &["--subdir", "elsewhere", "--cache-dir", &volume.temp.path().join("c").display().to_string()],
    );
    fs::write(inside.join("f"), "x").expect("written");
    let look = |name: &str| fs::metadata(home.join(name));
    for round in 0..5 {
        // Known to the kernel as a name that is not there, and as a directory with something mounted on it.
        let name = format!("from-other-{round}");
        assert!(look(&name).is_err() && look("inside/f").is_ok());
        fs::write(other.join(&name), "").expect("written");
        eventually("the new name is seen", || look(&name).is_ok());
        assert!(look("inside/f").is_ok(), "in round {round} what was mounted there is gone");
    }
    for i in 0..300 {
        fs::write(other.join(format!("many-{i}")), "").expect("written");
    }
    eventually("the last name is seen", || look("many-299").is_ok());
    assert_eq!(fs::read(inside.join("f")).expect("still mounted"), b"x");
    inside.unmount();
    home.unmount();
    other.unmount();
    volume.assert_clean();
}
