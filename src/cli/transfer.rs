//! The options of uploads and downloads (cli §6.1).

use crate::cli::{value, values};
use crate::volume::TransferOptions;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Most transfers at once that can be asked for; each may hold a block of 16 MiB.
const TRANSFERS_MAX: usize = 10_000;
/// Time of one attempt: no less than a round trip around the world, no more than anybody waits for a sign of life.
const ATTEMPT_TIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// Retries that stand for the usual number, as in the other client (data §3).
const RETRIES_OF_ZERO: u32 = 10;

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Uploads and downloads")]
pub struct TransferArgs {
    /// Most blocks stored at once [default: 20].
    #[arg(long, value_name = "N")]
    max_uploads: Option<String>,
    /// Most blocks read at once [default: 200].
    #[arg(long, value_name = "N")]
    max_downloads: Option<String>,
    /// Most objects removed at once; 0 = other clients remove what is to go [default: 10].
    #[arg(long, value_name = "N")]
    max_deletes: Option<String>,
    /// Bandwidth to the bucket, in Mbit/s; 0 = unlimited [default: as the volume says].
    #[arg(long, value_name = "MBPS")]
    upload_limit: Option<String>,
    /// Bandwidth from the bucket, in Mbit/s; 0 = unlimited [default: as the volume says].
    #[arg(long, value_name = "MBPS")]
    download_limit: Option<String>,
    /// Longest time of one attempt to store a block [default: 60].
    #[arg(long, value_name = "SECONDS")]
    put_timeout: Option<String>,
    /// Longest time of one attempt to fetch a block [default: 60].
    #[arg(long, value_name = "SECONDS")]
    get_timeout: Option<String>,
    /// Give up after so many retries [default: wait for the bucket for as long as it takes; 10 if the objects are in a directory].
    #[arg(long, value_name = "N")]
    io_retries: Option<String>,
    /// Most data fetched ahead of a reader, in MiB; 0 = none [default: 8 blocks].
    #[arg(long, value_name = "SIZE")]
    max_readahead: Option<String>,
    /// Whole blocks fetched at once after a part of them was read; 0 = none [default: 1].
    #[arg(long, value_name = "N")]
    prefetch: Option<String>,
}

impl TransferArgs {
    /// What was asked for.
    pub fn options(&self) -> anyhow::Result<TransferOptions> {
        let default = TransferOptions::default();
        let limit = |option: &str, text: &Option<String>| match text {
            None => Ok(None),
            text => value(option, text.as_ref(), 0, values::bandwidth).map(Some),
        };
        let io_retries = match &self.io_retries {
            None => None,
            text => Some(value("io-retries", text.as_ref(), 0, |text| text.parse().map_err(|_| "a number is wanted".to_string()))?),
        };
        let readahead_bytes = match &self.max_readahead {
            None => None,
            text => Some(value("max-readahead", text.as_ref(), 0, |text| values::size(text, 'M'))?),
        };
        Ok(TransferOptions {
            uploads_max: transfers("max-uploads", self.max_uploads.as_ref(), 1, default.uploads_max)?,
            downloads_max: transfers("max-downloads", self.max_downloads.as_ref(), 1, default.downloads_max)?,
            deletes_max: transfers("max-deletes", self.max_deletes.as_ref(), 0, default.deletes_max)?,
            upload_limit: limit("upload-limit", &self.upload_limit)?,
            download_limit: limit("download-limit", &self.download_limit)?,
            put_time_max: attempt_time("put-timeout", self.put_timeout.as_ref(), default.put_time_max)?,
            get_time_max: attempt_time("get-timeout", self.get_timeout.as_ref(), default.get_time_max)?,
            retries: io_retries.map(|retries: u32| if retries == 0 { RETRIES_OF_ZERO } else { retries }),
            readahead_bytes,
            prefetches_max: transfers("prefetch", self.prefetch.as_ref(), 0, default.prefetches_max)?,
        })
    }
}

fn transfers(option: &str, text: Option<&String>, least: usize, default: usize) -> anyhow::Result<usize> {
    let read = |text: &str| match text.parse() {
        Ok(n) if (least..=TRANSFERS_MAX).contains(&n) => Ok(n),
        _ => Err(format!("a number from {least} to {TRANSFERS_MAX} is wanted")),
    };
    value(option, text, default, read)
}

fn attempt_time(option: &str, text: Option<&String>, default: Duration) -> anyhow::Result<Duration> {
    let read = |text: &str| match values::duration(text) {
        Ok(time) if ATTEMPT_TIME.contains(&time) => Ok(time),
        Ok(_) => Err("a time from 1 to 3600 seconds is wanted".to_string()),
        Err(why) => Err(why),
    };
    value(option, text, default, read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        transfers: TransferArgs,
    }

    fn options(line: &str) -> anyhow::Result<TransferOptions> {
        Line::try_parse_from(["x"].into_iter().chain(line.split_whitespace())).expect("parses").transfers.options()
    }

    #[test]
    fn options_are_those_asked_for() {
        assert_eq!(options("").expect("good"), TransferOptions::default());
        let line = "--max-uploads 3 --max-downloads 4 --max-deletes 0 --upload-limit 100 --download-limit 1G --put-timeout 90 --get-timeout 5s \
                    --io-retries 7 --max-readahead 64 --prefetch 0";
        let expected = TransferOptions {
            uploads_max: 3,
            downloads_max: 4,
            deletes_max: 0,
            upload_limit: Some(100),
            download_limit: Some(1000),
            put_time_max: Duration::from_secs(90),
            get_time_max: Duration::from_secs(5),
            retries: Some(7),
            readahead_bytes: Some(64 << 20),
            prefetches_max: 0,
        };
        assert_eq!(options(line).expect("good"), expected);
        assert_eq!(options("--io-retries 0 --upload-limit 0").map(|o| (o.retries, o.upload_limit)).expect("good"), (Some(10), Some(0)));
        for (line, what) in [
            ("--max-uploads 0", "max-uploads"),
            ("--max-deletes -1", "max-deletes"),
            ("--get-timeout 0", "get-timeout"),
            ("--put-timeout 2h", "put-timeout"),
            ("--io-retries many", "io-retries"),
            ("--upload-limit x", "upload-limit"),
            ("--max-readahead 1GB", "max-readahead"),
        ] {
            let line = line.replacen(' ', "=", 1);
            let error = options(&line).expect_err("refused").to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
