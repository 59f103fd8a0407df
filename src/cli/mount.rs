//! `pando mount DIR MOUNTPOINT`

use crate::cli::helper::is_fstab_word;
use crate::cli::program::Program;
use crate::cli::transfer::TransferArgs;
use crate::cli::{announce, cache, invalid, value, values, volume_of};
use crate::daemon::{self, MetricsPlan, MountPlan, prepare};
use crate::meta::AtimeMode;
use crate::telemetry;
use crate::volume::{self, BackupOptions, KERNEL_TTL_MAX, MetaUrl, MountOptions, NewVolume, Place, VolumeOptions, place};
use anyhow::{Context, bail};
use clap::ArgAction;
use std::path::PathBuf;
use std::time::Duration;
use tracing::warn;

/// Least buffer: a few blocks of the largest size for writing and reading each.
const BUFFER_BYTES_MIN: u64 = 32 << 20;
/// Largest and smallest request of the kernel in bytes.
const REQUEST_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 20;
/// How often a session may be renewed.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(600);
/// How often the metadata is backed up if nothing else is said.
const BACKUP_PERIOD: Duration = Duration::from_secs(3600);
/// Shortest period of backups that does not burden the metadata store.
const BACKUP_PERIOD_MIN: Duration = Duration::from_secs(300);
/// Variable whose value `true` allows shorter ones.
const BACKUP_PERIOD_UNCHECKED: &str = "SKIP_BACKUP_META_CHECK";

const AFTER_HELP: &str = "A DIR that does not exist yet, or is empty, becomes a new volume. Other options of `juicefs mount` are \
                          accepted with a warning if they have no effect, and refused if a promise would be broken without them.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Where it appears; created if missing.
    mountpoint: PathBuf,
    /// Return when the mount is ready and serve from the background.
    #[arg(long, short = 'd', action = ArgAction::SetTrue)]
    background: bool,
    /// Log of a background process [default: /var/log/pando.log, of others than root ~/.pando/pando.log].
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Mount this directory of the volume as its root; created if missing.
    #[arg(long, value_name = "DIR")]
    subdir: Option<String>,
    /// Allow no changes.
    #[arg(long, action = ArgAction::SetTrue)]
    read_only: bool,
    /// Mount options, separated by commas: ro, allow_other, default_permissions, and those of mount(8).
    #[arg(long = "options", short = 'o', value_name = "OPTIONS", action = ArgAction::Append)]
    options: Vec<String>,
    /// How long the kernel remembers attributes [default: 1.0; at most 1].
    #[arg(long, value_name = "SECONDS")]
    attr_cache: Option<String>,
    /// How long the kernel remembers names of files [default: 1.0; at most 1].
    #[arg(long, value_name = "SECONDS")]
    entry_cache: Option<String>,
    /// How long the kernel remembers names of directories [default: 1.0; at most 1].
    #[arg(long, value_name = "SECONDS")]
    dir_entry_cache: Option<String>,
    /// How long the kernel remembers that a name is missing: only 0.
    #[arg(long, value_name = "SECONDS")]
    negative_entry_cache: Option<String>,
    /// Show `.trash` in the root of the volume; so without the option under the name juicefs.
    #[arg(long, action = ArgAction::SetTrue)]
    show_internal: bool,
    /// Offer no `.trash`, under whatever name.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    hide_internal: bool,
    /// Offer extended attributes.
    #[arg(long, action = ArgAction::SetTrue)]
    enable_xattr: bool,
    /// When reading updates the access time: noatime, relatime or strictatime.
    #[arg(long, value_name = "MODE")]
    atime_mode: Option<String>,
    /// Memory for data being read and written, in MiB [default: 300; at least 32].
    #[arg(long, value_name = "SIZE")]
    buffer_size: Option<String>,
    /// Force this umask for all new files and directories.
    #[arg(long, value_name = "OCTAL")]
    umask: Option<String>,
    /// Largest request of the kernel [default: 1M, which is the most].
    #[arg(long, value_name = "SIZE")]
    max_fuse_io: Option<String>,
    /// How often the session is renewed, in seconds [default: 12].
    #[arg(long, value_name = "SECONDS")]
    heartbeat: Option<String>,
    /// How often the metadata is backed up into the bucket, by one of all clients, in seconds; 0 = never [default: 3600; at least 300].
    #[arg(long, value_name = "SECONDS")]
    backup_meta: Option<String>,
    /// Back up without the trash.
    #[arg(long, action = ArgAction::SetTrue)]
    backup_skip_trash: bool,
    /// Store small blocks in the bucket before they are acknowledged, instead of keeping them beside the metadata for seconds.
    #[arg(long, action = ArgAction::SetTrue)]
    no_journal: bool,
    /// Leave work that any client can do (emptying the trash, cleaning up after others, backups) to the other clients.
    #[arg(long, action = ArgAction::SetTrue)]
    no_bgjob: bool,
    /// Let nobody check permissions.
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    non_default_permission: bool,
    /// Serve Prometheus metrics at this address [default: none; under the name juicefs 127.0.0.1:9567, or another port if that is taken].
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<String>,
    /// Labels at every metric, such as team:a;zone:b.
    #[arg(long, value_name = "LABELS")]
    custom_labels: Option<String>,
    #[command(flatten)]
    transfers: TransferArgs,
    #[command(flatten)]
    cache: cache::CacheArgs,
}

/// Runs the command; `logging` starts the log of the process that serves.
pub fn run(args: &Args, program: Program, logging: impl Fn()) -> anyhow::Result<()> {
    let (plan, warnings) = plan(args, program)?;
    let place = plan.mountpoint.display();
    daemon::run(
        &plan,
        || {
            logging();
            for warning in &warnings {
                warn!("{warning}");
            }
        },
        |name| match program {
            Program::Pando => announce(&format!("pando: {name} is ready at {place} (stop with: pando umount {place})")),
            // Its standard output stays empty.
            Program::Juicefs => telemetry::line("INFO", &format!("OK, {name} is ready at \"{place}\"")),
        },
    )?;
    Ok(())
}

fn plan(args: &Args, program: Program) -> anyhow::Result<(MountPlan, Vec<String>)> {
    let mut warnings = Vec::new();
    let url = volume_of(&args.volume)?;
    let options = kernel_options(&args.options)?;
    let read_only = args.read_only || options.read_only;
    let fresh = fresh_volume(&url, program, read_only)?;
    let ttl_max = if url.dir().is_some() { KERNEL_TTL_MAX } else { Duration::MAX };
    let mut ttl = |option: &str, text: Option<&String>| -> anyhow::Result<Duration> {
        let asked = value(option, text, KERNEL_TTL_MAX, values::duration)?;
        if asked > ttl_max {
            // A second process that joins waits this long before it serves.
            warnings.push(format!("--{option} {} is more than a local volume allows; using 1 second", text.map_or("", String::as_str)));
        }
        Ok(asked.min(ttl_max))
    };
    let attr_ttl = ttl("attr-cache", args.attr_cache.as_ref())?;
    let entry_ttl = ttl("entry-cache", args.entry_cache.as_ref())?;
    let dir_entry_ttl = ttl("dir-entry-cache", args.dir_entry_cache.as_ref())?;
    if value("negative-entry-cache", args.negative_entry_cache.as_ref(), Duration::ZERO, values::duration)? > Duration::ZERO {
        warnings.push("--negative-entry-cache has no effect: the kernel remembers no missing names".into());
    }
    let atime = match args.atime_mode.as_deref() {
        None | Some("noatime") => AtimeMode::Never,
        Some("relatime") => AtimeMode::Relative,
        Some("strictatime") => AtimeMode::Strict,
        Some(other) => {
            warnings.push(format!("--atime-mode {other} is unknown; using noatime"));
            AtimeMode::Never
        }
    };
    let buffer_bytes = value("buffer-size", args.buffer_size.as_ref(), 300 << 20, |text| values::size(text, 'M'))?;
    let request_bytes = value("max-fuse-io", args.max_fuse_io.as_ref(), program.request_bytes(), |text| values::size(text, 'B'))?;
    let heartbeat = value("heartbeat", args.heartbeat.as_ref(), Duration::from_secs(12), values::duration)?;
    let beat = heartbeat.clamp(*HEARTBEAT.start(), *HEARTBEAT.end());
    if beat != heartbeat {
        warnings.push(format!("--heartbeat {heartbeat:?} is not possible; using {beat:?}"));
    }
    if buffer_bytes < BUFFER_BYTES_MIN {
        let [asked, least] = [buffer_bytes, BUFFER_BYTES_MIN].map(values::human_bytes);
        warnings.push(format!("--buffer-size {asked} is too small; using {least}"));
    }
    let umask = args.umask.as_ref().map(|text| values::octal(text).map_err(|why| invalid(text, "umask", &why))).transpose()?;
    let log = if args.background && std::env::var_os("JFS_FOREGROUND").is_none_or(|v| v.is_empty()) {
        Some(std::path::absolute(args.log.clone().map_or_else(|| default_log(program), Ok)?).context("cannot find the log file")?)
    } else {
        None
    };
    let transfers = args.transfers.options()?;
    let metrics = metrics(args, program)?;
    let cache = args.cache.options(&mut warnings)?;
    // Last: it makes the mount point, which should not happen for a command line that is wrong.
    let mountpoint = prepare(&args.mountpoint, url.dir())?;
    let plan = MountPlan {
        fresh,
        subtype: program.name(),
        source: program.source(),
        volume: VolumeOptions {
            read_only,
            mountpoint: mountpoint.to_string_lossy().into_owned(),
            atime,
            buffer_bytes: usize::try_from(buffer_bytes.max(BUFFER_BYTES_MIN)).context("--buffer-size is too large")?,
            transfers,
            heartbeat: beat,
            cache,
            journal: !args.no_journal,
            background: !args.no_bgjob,
            backup: backup_period(args.backup_meta.as_ref())?.map(|period| BackupOptions { period, skip_trash: args.backup_skip_trash }),
        },
        view: MountOptions {
            subdir: args.subdir.clone(),
            read_only,
            xattr: args.enable_xattr,
            show_internal: args.show_internal || (program.shows_internal() && !args.hide_internal),
            attr_ttl,
            entry_ttl,
            dir_entry_ttl,
            umask,
        },
        allow_other: options.allow_other || is_root(),
        default_permissions: !args.non_default_permission,
        options: options.others,
        request_bytes: u32::try_from(request_bytes.clamp(*REQUEST_BYTES.start(), *REQUEST_BYTES.end()))
            .context("--max-fuse-io is too large")?,
        url,
        mountpoint,
        log,
        metrics,
        ready_time_max: program.ready_time_max(),
    };
    Ok((plan, warnings))
}

/// `None`: no metrics.
fn metrics(args: &Args, program: Program) -> anyhow::Result<Option<MetricsPlan>> {
    let labels = args.custom_labels.as_ref().map_or(Ok(Vec::new()), |text| {
        text.split(';').filter(|label| !label.is_empty()).map(label).collect::<Option<Vec<_>>>().ok_or_else(|| {
            invalid(
                text,
                "custom-labels",
                "pairs of a name and a value are wanted, such as team:a;zone:b; names of letters, digits and underscores",
            )
        })
    })?;
    let address = match (&args.metrics, program) {
        (Some(address), _) if address.is_empty() => None,
        (Some(address), _) if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) => {
            return Err(invalid(address, "metrics", "an address and a port are wanted, such as 127.0.0.1:9567"));
        }
        (Some(address), _) => Some((address.clone(), true)),
        (None, Program::Juicefs) => Some((daemon::ADDRESS_DEFAULT.to_string(), false)),
        (None, Program::Pando) => None,
    };
    Ok(address.map(|(address, asked_for)| MetricsPlan { address, asked_for, labels }))
}

/// `NAME:VALUE`; the name as Prometheus takes it.
fn label(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once(':')?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let named = name.starts_with(|c: char| word(c) && !c.is_ascii_digit()) && name.chars().all(word);
    let taken = ["instance", "juicefs_version", "mp", "vol_name", "method", "errno", "le"].contains(&name);
    (named && !taken).then(|| (name.to_owned(), value.to_owned()))
}

/// `None`: no backups.
fn backup_period(text: Option<&String>) -> anyhow::Result<Option<Duration>> {
    let period = value("backup-meta", text, BACKUP_PERIOD, values::duration)?;
    let unchecked = std::env::var_os(BACKUP_PERIOD_UNCHECKED).is_some_and(|value| value == "true");
    if !period.is_zero() && period < BACKUP_PERIOD_MIN && !unchecked {
        let seconds = period.as_secs();
        let minutes = if seconds >= 60 { format!("{}m", seconds / 60) } else { String::new() };
        bail!("backup-meta should not be less than 5 minutes: {minutes}{}s", seconds % 60);
    }
    Ok(Some(period).filter(|period| !period.is_zero()))
}

#[derive(Debug, Default, PartialEq, Eq)]
struct KernelOptions {
    read_only: bool,
    allow_other: bool,
    others: Vec<String>,
}

fn kernel_options(lists: &[String]) -> anyhow::Result<KernelOptions> {
    let mut options = KernelOptions::default();
    for word in lists.iter().flat_map(|list| list.split(',')).filter(|word| !word.is_empty()) {
        match word {
            "ro" => options.read_only = true,
            // Both mean that not only the user who mounts may look inside.
            "allow_other" | "allow_root" => options.allow_other = true,
            // Always so, unless it is switched off.
            "default_permissions" => {}
            "writeback_cache" => {
                bail!("-o writeback_cache is not supported: written data would be unknown to fsync and to other processes; leave it out")
            }
            "debug" => {}
            word if is_fstab_word(word) => {}
            other => options.others.push(other.into()),
        }
    }
    Ok(options)
}

/// What the volume becomes if there is none: a local one under our own name, an error otherwise.
fn fresh_volume(url: &MetaUrl, program: Program, read_only: bool) -> anyhow::Result<Option<NewVolume>> {
    let Some(dir) = url.dir() else { return Ok(None) };
    match place(dir).with_context(|| format!("cannot look into {url}"))? {
        Place::Free if read_only => bail!("database is not formatted: {url} holds no volume, and a read-only mount makes none"),
        Place::Free if program == Program::Juicefs => bail!("database is not formatted, please run `juicefs format ...` first"),
        Place::Free | Place::Volume => Ok(Some(NewVolume { name: volume::name_of(dir), ..NewVolume::default() })),
        Place::Foreign => bail!("{url} holds other files and no volume; name a directory that is empty or does not exist yet"),
    }
}

fn default_log(program: Program) -> anyhow::Result<PathBuf> {
    let name = program.name();
    if is_root() {
        return Ok(format!("/var/log/{name}.log").into());
    }
    let home = std::env::var_os("HOME").context("$HOME is not set; give the log file with --log")?;
    Ok(PathBuf::from(home).join(format!(".{name}/{name}.log")))
}

fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn plan_of(dir: &std::path::Path, options: &[&str]) -> anyhow::Result<(MountPlan, Vec<String>)> {
        plan_as(Program::Pando, dir, options)
    }

    fn plan_as(program: Program, dir: &std::path::Path, options: &[&str]) -> anyhow::Result<(MountPlan, Vec<String>)> {
        let vol = dir.join("vol").to_string_lossy().into_owned();
        let mnt = dir.join("mnt").to_string_lossy().into_owned();
        let line: Vec<String> = ["mount", &vol, &mnt].iter().chain(options).map(|word| word.to_string()).collect();
        let normal = crate::cli::args::normalise(&<Cli as clap::CommandFactory>::command(), &line).expect("a command line");
        match Cli::try_parse_from(normal.args).expect("parses").command {
            Command::Mount(args) => plan(&args, program),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_a_plan() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (plan, warnings) = plan_of(dir.path(), &[]).expect("a plan");
        assert_eq!((plan.fresh.expect("made").name.as_str(), plan.request_bytes, plan.volume.buffer_bytes), ("vol", 1 << 20, 300 << 20));
        assert_eq!((plan.view.attr_ttl, plan.log.is_none(), warnings.len()), (Duration::from_secs(1), true, 0));
        let options = ["--attr-cache", "60", "-o", "ro,nosuid,noauto", "--umask=022", "--buffer-size", "1", "--entry-cache", "0.2"];
        std::fs::create_dir(dir.path().join("vol")).expect("made");
        std::fs::write(dir.path().join("vol/pando.db"), "").expect("written");
        let (plan, warnings) = plan_of(dir.path(), &options).expect("a plan");
        assert!(warnings[0].contains("--attr-cache 60") && warnings.iter().any(|told| told.contains("--buffer-size")), "{warnings:?}");
        assert!(plan.volume.read_only && plan.view.read_only);
        assert_eq!((plan.options, plan.view.umask), (vec!["nosuid".to_string()], Some(0o22)));
        assert_eq!((plan.volume.buffer_bytes, plan.view.entry_ttl), (32 << 20, Duration::from_millis(200)));
    }

    #[test]
    fn the_name_it_was_called_by_sets_defaults() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let error = plan_as(Program::Juicefs, dir.path(), &[]).expect_err("no volume").to_string();
        assert_eq!(error, "database is not formatted, please run `juicefs format ...` first");
        std::fs::create_dir(dir.path().join("vol")).expect("made");
        std::fs::write(dir.path().join("vol/pando.db"), "").expect("written");
        let (plan, _) = plan_as(Program::Juicefs, dir.path(), &["-d"]).expect("a plan");
        assert_eq!((plan.subtype, plan.source, plan.request_bytes), ("juicefs", "JuiceFS", 128 << 10));
        assert!(plan.log.is_some_and(|log| log.ends_with("juicefs.log")));
        // What fleets give; none of it stops a mount.
        let line = "--cache-dir /c --cache-size 20480 --backup-meta 3600 --no-usage-report --buffer-size 300 --prefetch 1 --max-uploads 20 \
                    --attr-cache 1 --entry-cache 1 --dir-entry-cache 1 --negative-entry-cache 1";
        let (plan, warnings) = plan_as(Program::Pando, dir.path(), &line.split_whitespace().collect::<Vec<_>>()).expect("a plan");
        assert_eq!((plan.volume.transfers.uploads_max, plan.volume.buffer_bytes, plan.subtype), (20, 300 << 20, "pando"));
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert_eq!(plan.volume.transfers.prefetches_max, 1);
        assert_eq!(plan.volume.backup, Some(BackupOptions { period: Duration::from_secs(3600), skip_trash: false }));
    }

    #[test]
    fn backups_come_every_hour_or_as_often_as_asked() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let backup = |options: &[&str]| plan_of(dir.path(), options).map(|(plan, _)| plan.volume.backup);
        let every = |seconds, skip_trash| Some(BackupOptions { period: Duration::from_secs(seconds), skip_trash });
        assert_eq!(backup(&[]).expect("a plan"), every(3600, false));
        assert_eq!(backup(&["--backup-meta", "5m", "--backup-skip-trash"]).expect("a plan"), every(300, true));
        assert_eq!(backup(&["--backup-meta", "0"]).expect("a plan"), None);
        for (text, what) in [("60", "backup-meta should not be less than 5 minutes: 1m0s"), ("x", "backup-meta")] {
            let error = backup(&["--backup-meta", text]).expect_err("refused").to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn metrics_are_served_where_scripts_look_for_them() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("vol")).expect("made");
        std::fs::write(dir.path().join("vol/pando.db"), "").expect("written");
        let of = |line: &[&str], program| plan_as(program, dir.path(), line).map(|(plan, _)| plan.metrics);
        let plan = |address: &str, asked_for| Some(MetricsPlan { address: address.into(), asked_for, labels: Vec::new() });
        assert_eq!(of(&[], Program::Pando).expect("good"), None);
        assert_eq!(of(&[], Program::Juicefs).expect("good"), plan("127.0.0.1:9567", false));
        assert_eq!(of(&["--metrics", "0.0.0.0:0"], Program::Juicefs).expect("good"), plan("0.0.0.0:0", true));
        assert_eq!(of(&["--metrics", ""], Program::Juicefs).expect("good"), None);
        let labels = of(&["--metrics", "h:1", "--custom-labels", "a:b;c_2:d:e;"], Program::Pando).expect("good").expect("served").labels;
        assert_eq!(labels, [("a".into(), "b".into()), ("c_2".into(), "d:e".into())]);
        for line in
            [["--metrics", "9567"], ["--metrics", "h:x"], ["--custom-labels", "a"], ["--custom-labels", "mp:x"], ["--custom-labels", "2:x"]]
        {
            assert!(of(&line, Program::Juicefs).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_before_anything_is_made() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (options, what) in [
            (&["--read-only"][..], "not formatted"),
            (&["--entry-cache", "x"], "entry-cache"),
            (&["-o", "writeback_cache"], "writeback_cache"),
            (&["--buffer-size", "abc"], "Invalid value \"abc\" for \"buffer-size\""),
            (&["--max-uploads", "0"], "max-uploads"),
            (&["--free-space-ratio", "1"], "free-space-ratio"),
            (&["--cache-size", "10GiB"], "cache-size"),
        ] {
            let error = plan_of(dir.path(), options).expect_err("refused").to_string();
            assert!(error.contains(what), "{error}");
        }
        assert!(!dir.path().join("mnt").exists());
    }
}
