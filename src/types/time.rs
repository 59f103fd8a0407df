//! `Time`: seconds and nanoseconds since the epoch, as attribute records keep them.

/// A point in time. `sec` may be negative; `nsec` is 0..=999_999_999.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Whole seconds since 1970, floor.
    pub sec: i64,
    /// Nanoseconds within the second.
    pub nsec: u32,
}

impl Time {
    /// The smallest time after this one; a data commit uses it so that mtime never stays as it was.
    pub fn next(self) -> Time {
        if self.nsec >= 999_999_999 {
            Time { sec: self.sec.saturating_add(1), nsec: 0 }
        } else {
            Time { sec: self.sec, nsec: self.nsec + 1 }
        }
    }
}

/// A date and time of day in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Civil {
    /// Year of the Gregorian calendar.
    pub year: i64,
    /// 1..=12.
    pub month: i64,
    /// 1..=31.
    pub day: i64,
    /// 0..=23.
    pub hour: i64,
    /// 0..=59.
    pub minute: i64,
    /// 0..=59.
    pub second: i64,
}

/// Days from 0000-03-01 to 1970-01-01. Counting from a March, the leap day ends a year.
const EPOCH_DAYS: i64 = 719_468;
/// Days of 400 years, after which the calendar repeats.
const ERA_DAYS: i64 = 146_097;

impl Civil {
    /// The UTC date of a number of seconds since 1970.
    pub fn of(sec: i64) -> Civil {
        let (days, second) = (sec.div_euclid(86_400), sec.rem_euclid(86_400));
        let days = days + EPOCH_DAYS;
        let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * day_of_year + 2) / 153;
        let (day, month) = (day_of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
        let year = era * 400 + year + i64::from(month <= 2);
        Civil { year, month, day, hour: second / 3600, minute: second / 60 % 60, second: second % 60 }
    }

    /// Seconds since 1970. Fields out of range count on: month 13 must not be given.
    pub fn seconds(&self) -> i64 {
        let year = if self.month <= 2 { self.year - 1 } else { self.year };
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let month = if self.month > 2 { self.month - 3 } else { self.month + 9 };
        let day_of_year = (153 * month + 2) / 5 + self.day - 1;
        let days = era * ERA_DAYS + year * 365 + year / 4 - year / 100 + day_of_year - EPOCH_DAYS;
        days * 86_400 + self.hour * 3600 + self.minute * 60 + self.second
    }

    /// As a timestamp of whole seconds: `2026-11-21T05:15:57Z`.
    pub fn rfc3339(&self) -> String {
        let Civil { year, month, day, hour, minute, second } = self;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Seconds since 1970 of a timestamp such as `2026-11-21T05:15:57Z` or `2026-11-21T13:15:57.5+08:00`; `None` if it is none.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(19)?;
    let zone = match rest.strip_prefix('.') {
        Some(rest) => {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0)?;
            &rest[digits..]
        }
        None => rest,
    };
    let offset = match zone.as_bytes() {
        b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let two = |a: &u8, b: &u8| (a.is_ascii_digit() && b.is_ascii_digit()).then(|| i64::from(a - b'0') * 10 + i64::from(b - b'0'));
            let seconds = two(h1, h2)? * 3600 + two(m1, m2)? * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| date.as_bytes()[*at] != *mark) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| {
        let digits = &date[range];
        digits.bytes().all(|c| c.is_ascii_digit()).then(|| digits.parse::<i64>().ok())?
    };
    let civil = Civil {
        year: number(0..4)?,
        month: number(5..7).filter(|month| (1..=12).contains(month))?,
        day: number(8..10).filter(|day| (1..=31).contains(day))?,
        hour: number(11..13).filter(|hour| *hour < 24)?,
        minute: number(14..16).filter(|minute| *minute < 60)?,
        second: number(17..19).filter(|second| *second <= 60)?,
    };
    Some(civil.seconds() - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_back() {
        for (sec, year, month, day) in [
            (0, 1970, 1, 1),
            (951_782_400, 2000, 2, 29),
            (951_868_800, 2000, 3, 1),
            (1_735_689_599, 2024, 12, 31),
            (4_107_542_400, 2100, 3, 1),
            (-1, 1969, 12, 31),
        ] {
            let civil = Civil::of(sec);
            assert_eq!((civil.year, civil.month, civil.day), (year, month, day));
            assert_eq!(civil.seconds(), sec);
            assert_eq!(parse_rfc3339(&civil.rfc3339()), Some(sec));
        }
    }

    #[test]
    fn timestamps() {
        for (text, sec) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-11-21T05:15:57Z", Some(1_795_238_157)),
            ("2026-11-21T13:15:57.123456789+08:00", Some(1_795_238_157)),
            ("2026-11-21T00:45:57-04:30", Some(1_795_238_157)),
            ("", None),
            ("2026-11-21", None),
            ("2026-11-21T05:15:57", None),
            ("2026-11-21T05:15:57.Z", None),
            ("2026-13-21T05:15:57Z", None),
            ("2026-11-21 05:15:57Z", None),
            ("2026-11-+1T05:15:57Z", None),
            ("2026-11-21T05:15:57+0800", None),
            ("ééééééééééZ", None),
        ] {
            assert_eq!(parse_rfc3339(text), sec, "{text}");
        }
    }

    #[test]
    fn no_text_upsets_the_parser() {
        crate::env::fuzz::decoder(&[b"2024-02-29T23:59:59.123456+01:00".to_vec(), b"1970-01-01T00:00:00Z".to_vec()], |bytes| {
            let _ = std::str::from_utf8(bytes).ok().and_then(parse_rfc3339);
        });
    }
}
