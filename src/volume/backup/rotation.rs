//! Names of backups, and which of them are kept (metadata §17): all of two days, then the first of each day for two weeks, of each 7 days for
//! two months, of each 30 days for two years. The windows are counted back from now.

use crate::types::Civil;

const DAY: i64 = 86_400;
/// All that are younger are kept.
const ALL_DAYS: i64 = 2;
/// Until then one of each day is kept,
const DAILY_DAYS: i64 = 14;
/// until then one of each week, and afterwards one of each 30 days.
const WEEKLY_DAYS: i64 = 60;
/// What is older is removed.
const YEARS: i64 = 2;

/// A backup in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The last part of its key.
    pub name: String,
    /// When it was begun, seconds since 1970.
    pub sec: i64,
    /// Its size.
    pub bytes: u64,
}

/// The name of a backup begun at this time.
pub(super) fn name(at: &Civil) -> String {
    let Civil { year, month, day, hour, minute, second } = at;
    format!("dump-{year:04}-{month:02}-{day:02}-{hour:02}{minute:02}{second:02}.json.gz")
}

/// When the backup of this name was begun; `None` if it is none of the format's.
pub fn parse_name(text: &str) -> Option<i64> {
    let stamp = text.strip_prefix("dump-")?.strip_suffix(".json.gz")?;
    let digits: Vec<i64> = stamp.bytes().filter(u8::is_ascii_digit).map(|c| i64::from(c - b'0')).collect();
    let [y1, y2, y3, y4, mo1, mo2, d1, d2, h1, h2, mi1, mi2, s1, s2] = digits[..] else { return None };
    let civil = Civil {
        year: y1 * 1000 + y2 * 100 + y3 * 10 + y4,
        month: (mo1 * 10 + mo2).clamp(1, 12),
        day: d1 * 10 + d2,
        hour: h1 * 10 + h2,
        minute: mi1 * 10 + mi2,
        second: s1 * 10 + s2,
    };
    let sec = civil.seconds();
    // Also says whether such a moment exists.
    (name(&Civil::of(sec)) == text).then_some(sec)
}

/// Those of these backups, oldest first, that are not kept at `now`.
pub(super) fn outdated(backups: &[Backup], now: i64) -> Vec<&Backup> {
    let today = Civil::of(now);
    let oldest = Civil { year: today.year - YEARS, ..today }.seconds();
    let mut gone = Vec::new();
    let mut days = ALL_DAYS;
    // The one that would be kept of the window at hand: the earliest seen, as they come from the latest to the earliest.
    let mut kept: Option<&Backup> = None;
    for backup in backups.iter().rev() {
        if backup.sec < oldest {
            gone.push(backup);
            continue;
        }
        let edge = |days: i64| now - days * DAY;
        if backup.sec >= edge(ALL_DAYS) {
            continue;
        }
        if backup.sec < edge(days) {
            kept = None;
            while backup.sec < edge(days) {
                days += if days < DAILY_DAYS {
                    1
                } else if days < WEEKLY_DAYS {
                    7
                } else {
                    30
                };
            }
        }
        gone.extend(kept.replace(backup));
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_795_238_157;

    fn at(sec: i64) -> Backup {
        Backup { name: name(&Civil::of(sec)), sec, bytes: 1 }
    }

    #[test]
    fn names_are_times() {
        let backup = at(NOW);
        assert_eq!((backup.name.as_str(), backup.name.len()), ("dump-2026-11-21-051557.json.gz", 30));
        assert_eq!(parse_name(&backup.name), Some(NOW));
        for other in ["", "dump-2026-11-21-051557.json", "dump-2026-13-21-051557.json.gz", "dump-20261121-05-15-57.json.gz", "x"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
        assert_eq!(parse_name("dump-2026-02-31-051557.json.gz"), None);
    }

    #[test]
    fn an_hourly_backup_for_three_years_leaves_a_calendar() {
        // Run as it happens: each hour one more, then the rotation.
        let mut kept: Vec<Backup> = Vec::new();
        let begin = NOW - 3 * 365 * DAY;
        for hour in 0..3 * 365 * 24 {
            let now = begin + hour * 3600;
            kept.push(at(now));
            let gone: Vec<String> = outdated(&kept, now).into_iter().map(|backup| backup.name.clone()).collect();
            kept.retain(|backup| !gone.contains(&backup.name));
            assert!(kept.len() < 120, "{}", kept.len());
        }
        let last = begin + (3 * 365 * 24 - 1) * 3600;
        let within = |from: i64, to: i64| kept.iter().filter(|b| last - b.sec >= from * DAY && last - b.sec < to * DAY).count();
        assert_eq!(within(0, 2), 48);
        assert!((11..=13).contains(&within(2, 14)), "{}", within(2, 14));
        assert!(within(14, 60) >= 6 && within(60, 730) >= 18, "{} {}", within(14, 60), within(60, 730));
        assert_eq!(within(732, 10_000), 0);
    }

    #[test]
    fn the_first_of_each_window_stays() {
        // Minutes before now: two in the first two days, three on the third day, two in the fourth.
        let ages = [1, 2879, 2881, 3000, 4319, 4321, 5000];
        let backups: Vec<Backup> = ages.iter().rev().map(|age| at(NOW - age * 60)).collect();
        let gone: Vec<i64> = outdated(&backups, NOW).into_iter().map(|backup| (NOW - backup.sec) / 60).collect();
        assert_eq!(gone, [2881, 3000, 4321]);
        assert_eq!(outdated(&[at(NOW - 3 * 366 * DAY)], NOW).len(), 1);
        assert_eq!(outdated(&[], NOW), Vec::<&Backup>::new());
        // A backup from a clock that was ahead harms nothing.
        assert_eq!(outdated(&[at(NOW + DAY)], NOW), Vec::<&Backup>::new());
    }

    #[test]
    fn no_name_upsets_the_parser() {
        crate::env::fuzz::decoder(&[b"dump-2024-02-29-235959.json.gz".to_vec()], |bytes| {
            if let Some(sec) = std::str::from_utf8(bytes).ok().and_then(parse_name) {
                assert_eq!(name(&Civil::of(sec)).as_bytes(), bytes);
            }
        });
    }
}
