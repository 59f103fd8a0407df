//! The options of the block cache (cli §6.1).

use crate::cache::{CacheOptions, CachePlace, Eviction, Hours, StagingOptions};
use crate::cli::{value, values};
use anyhow::Context;
use clap::ArgAction;
use std::path::absolute;
use std::time::Duration;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheArgs {
    /// Where blocks are cached: directories between colons, which may have wildcards, or `memory` [default: /var/jfsCache, of others than
    /// root ~/.juicefs/cache; nowhere if the objects are in a directory].
    #[arg(long, value_name = "DIRS")]
    cache_dir: Option<String>,
    /// Most bytes cached, in MiB; 0 caches nothing on disk [default: 100G].
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<String>,
    /// Most blocks cached; 0 = as many as there are inodes for.
    #[arg(long, value_name = "N")]
    cache_items: Option<String>,
    /// Part of each cache disk that is left free, of its bytes and of its inodes [default: 0.1].
    #[arg(long, value_name = "RATIO")]
    free_space_ratio: Option<String>,
    /// Permissions of the cached files [default: 0600].
    #[arg(long, value_name = "OCTAL")]
    cache_mode: Option<String>,
    /// What goes when a directory is full: 2-random, lru or none [default: 2-random].
    #[arg(long, value_name = "POLICY")]
    cache_eviction: Option<String>,
    /// Remove blocks that were not used for this time [default: never].
    #[arg(long, value_name = "SECONDS")]
    cache_expire: Option<String>,
    /// How often the directories are looked through; 0 = once [default: 1h].
    #[arg(long, value_name = "SECONDS")]
    cache_scan_interval: Option<String>,
    /// Cache no full blocks that are read.
    #[arg(long, action = ArgAction::SetTrue)]
    cache_partial_only: bool,
    /// Cache full blocks that are written.
    #[arg(long, action = ArgAction::SetTrue)]
    cache_large_write: bool,
    /// Checksums of cached blocks: extend, or none; full and shrink are taken as extend.
    #[arg(long, value_name = "LEVEL")]
    verify_cache_checksum: Option<String>,
    /// Blocks count as stored once they are durable in the cache directory, and are uploaded afterwards. Until then other hosts cannot read them, and
    /// they are lost with this disk.
    #[arg(long, action = ArgAction::SetTrue)]
    writeback: bool,
    /// With --writeback: only blocks below this size are staged, in bytes; 0 = all [default: 0].
    #[arg(long, value_name = "SIZE")]
    writeback_threshold_size: Option<String>,
    /// With --writeback: blocks staged at once; more are uploaded directly [default: 1000].
    #[arg(long, value_name = "N")]
    max_stage_write: Option<String>,
    /// With --writeback: staged blocks are uploaded when they are so old [default: 0].
    #[arg(long, value_name = "SECONDS")]
    upload_delay: Option<String>,
    /// With --writeback: staged blocks are uploaded in these hours of the day, the last one excluded, such as 22,6 or 22-6 [default: always].
    #[arg(long, value_name = "START,END")]
    upload_hours: Option<String>,
}

impl CacheArgs {
    /// What was asked for. Values that cannot be read are errors; names nobody knows become the default with a warning.
    pub fn options(&self, warnings: &mut Vec<String>) -> anyhow::Result<CacheOptions> {
        let default = CacheOptions::default();
        let place = match self.cache_dir.as_deref().map_or(CachePlace::Default, CachePlace::parse) {
            // The process that serves may work in another directory.
            CachePlace::Dirs(dirs) => {
                CachePlace::Dirs(dirs.iter().map(absolute).collect::<Result<_, _>>().context("cannot find --cache-dir")?)
            }
            place => place,
        };
        let size_bytes = match &self.cache_size {
            None => None,
            text => Some(value("cache-size", text.as_ref(), 0, |text| values::size(text, 'M'))?),
        };
        let items = value("cache-items", self.cache_items.as_ref(), default.items, |text| {
            text.parse().map_err(|_| format!("{text:?} is no number of blocks"))
        })?;
        let free_ratio = value("free-space-ratio", self.free_space_ratio.as_ref(), default.free_ratio, |text| match text.parse() {
            Ok(ratio) if (0.0..1.0).contains(&ratio) => Ok(ratio),
            _ => Err(format!("{text:?} is no number from 0 to below 1")),
        })?;
        let mode = match self.cache_mode.as_deref().map(|text| (text, values::octal(text))) {
            None => default.mode,
            // Without these this program could not read its own files.
            Some((_, Ok(mode))) if mode & 0o600 == 0o600 => mode.into(),
            Some((text, _)) => {
                warnings.push(format!("--cache-mode {text} cannot be used; using 0600"));
                default.mode
            }
        };
        let eviction = match self.cache_eviction.as_deref() {
            None | Some("2-random") => Eviction::TwoRandom,
            Some("lru") => Eviction::Lru,
            Some("none") => Eviction::None,
            Some(other) => {
                warnings.push(format!("--cache-eviction {other} is unknown; using 2-random"));
                Eviction::TwoRandom
            }
        };
        let checksums = match self.verify_cache_checksum.as_deref() {
            // The two in the middle check some reads and let others return damage.
            None | Some("extend" | "full" | "shrink") => true,
            Some("none") => false,
            Some(other) => {
                warnings.push(format!("--verify-cache-checksum {other} is unknown; using extend"));
                true
            }
        };
        let expire = value("cache-expire", self.cache_expire.as_ref(), default.expire, values::duration)?;
        Ok(CacheOptions {
            place,
            size_bytes,
            items,
            free_ratio,
            mode,
            eviction,
            expire: if expire.is_zero() { expire } else { expire.max(Duration::from_secs(1)) },
            scan_interval: value("cache-scan-interval", self.cache_scan_interval.as_ref(), default.scan_interval, values::duration)?,
            partial_only: self.cache_partial_only,
            large_write: self.cache_large_write,
            checksums,
            staging: self.staging(warnings)?,
        })
    }

    fn staging(&self, warnings: &mut Vec<String>) -> anyhow::Result<Option<StagingOptions>> {
        let options = StagingOptions {
            below_bytes: value("writeback-threshold-size", self.writeback_threshold_size.as_ref(), 0, |text| values::size(text, 'B'))?,
            writes_max: value("max-stage-write", self.max_stage_write.as_ref(), STAGE_WRITES_DEFAULT, |text| {
                text.parse().map_err(|_| format!("{text:?} is no number of blocks"))
            })?,
            delay: value("upload-delay", self.upload_delay.as_ref(), Duration::ZERO, values::duration)?,
            hours: value("upload-hours", self.upload_hours.as_ref(), None, |text| hours(text).map(Some))?,
        };
        if !self.writeback {
            for (name, text) in [
                ("writeback-threshold-size", &self.writeback_threshold_size),
                ("max-stage-write", &self.max_stage_write),
                ("upload-delay", &self.upload_delay),
                ("upload-hours", &self.upload_hours),
            ] {
                if text.is_some() {
                    warnings.push(format!("--{name} has no effect without --writeback: blocks are stored before they are acknowledged"));
                }
            }
            return Ok(None);
        }
        Ok(Some(options))
    }
}

/// `START,END` or `START-END`.
fn hours(text: &str) -> Result<Hours, String> {
    let wrong = || format!("{text:?} is no pair of different hours from 0 to 23, such as 22,6");
    let (start, end) = text.split_once([',', '-']).ok_or_else(wrong)?;
    let hour = |part: &str| part.trim().parse().ok().filter(|hour: &u8| *hour < 24);
    match (hour(start), hour(end)) {
        (Some(start), Some(end)) if start != end => Ok(Hours { start, end }),
        _ => Err(wrong()),
    }
}

/// Blocks staged at once if nothing is said (data §3).
const STAGE_WRITES_DEFAULT: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        cache: CacheArgs,
    }

    fn options(line: &[&str]) -> (anyhow::Result<CacheOptions>, Vec<String>) {
        let mut warnings = Vec::new();
        let options = Line::try_parse_from([&["x"], line].concat()).expect("parses").cache.options(&mut warnings);
        (options, warnings)
    }

    #[test]
    fn options_are_those_asked_for() {
        assert_eq!(options(&[]).0.expect("good"), CacheOptions::default());
        let line = "--cache-dir /a:/b* --cache-size 10G --cache-items 7 --free-space-ratio 0.25 --cache-mode 0644 --cache-eviction lru \
                    --cache-expire 0.5 --cache-scan-interval 0 --cache-partial-only --cache-large-write --verify-cache-checksum none";
        let line: Vec<&str> = line.split_whitespace().collect();
        let (found, warnings) = options(&line);
        let expected = CacheOptions {
            place: CachePlace::Dirs(vec!["/a".into(), "/b*".into()]),
            size_bytes: Some(10 << 30),
            items: 7,
            free_ratio: 0.25,
            mode: 0o644,
            eviction: Eviction::Lru,
            expire: Duration::from_secs(1),
            scan_interval: Duration::ZERO,
            partial_only: true,
            large_write: true,
            checksums: false,
            staging: None,
        };
        assert_eq!((found.expect("good"), warnings.len()), (expected, 0));
        let (found, warnings) = options(&["--cache-mode", "0444", "--cache-eviction", "fifo", "--verify-cache-checksum", "most"]);
        assert_eq!((found.expect("good"), warnings.len()), (CacheOptions::default(), 3));
        for (option, text) in [("--cache-size", "1GB"), ("--free-space-ratio", "1.5"), ("--cache-items", "x"), ("--cache-expire", "x")] {
            assert!(options(&[option, text]).0.is_err(), "{option} {text}");
        }
    }

    #[test]
    fn staging_is_what_was_asked_for() {
        let line = "--writeback --writeback-threshold-size 1M --max-stage-write 7 --upload-delay 1h --upload-hours 22-6";
        let (found, warnings) = options(&line.split_whitespace().collect::<Vec<_>>());
        let hours = Some(Hours { start: 22, end: 6 });
        let expected = StagingOptions { below_bytes: 1 << 20, writes_max: 7, delay: Duration::from_secs(3600), hours };
        assert_eq!((found.expect("good").staging, warnings.len()), (Some(expected), 0));
        let (found, warnings) = options(&["--upload-delay", "10", "--upload-hours", "1,2"]);
        assert_eq!((found.expect("good").staging, warnings.len()), (None, 2));
        for text in ["24,1", "5,5", "5", "a-b", ""] {
            assert!(options(&["--writeback", "--upload-hours", text]).0.is_err(), "{text}");
        }
        let within = |hour| Hours { start: 22, end: 6 }.contains(hour);
        assert_eq!([21, 22, 0, 5, 6].map(within), [false, true, true, true, false]);
    }
}
