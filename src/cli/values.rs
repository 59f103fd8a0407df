//! Values of options: sizes, durations, octal numbers (cli §1.4).

use std::borrow::Cow;
use std::time::Duration;

/// A number of bytes: digits with an optional fraction and one of the letters B K M G T P E; `unit` is the letter of a bare number.
pub fn size(text: &str, unit: char) -> Result<u64, String> {
    let (number, unit) = match text.chars().next_back() {
        Some(letter) if letter.is_ascii_alphabetic() => (&text[..text.len() - 1], letter),
        _ => (text, unit),
    };
    let power = "BKMGTPE".find(unit.to_ascii_uppercase()).ok_or_else(|| format!("{unit} is no unit; B K M G T P E are"))?;
    let plain = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let number: f64 = number.parse().ok().filter(|_| plain).ok_or_else(|| format!("{text:?} is no size, such as 64K or 1.5G"))?;
    let bytes = number * 1024f64.powi(i32::try_from(power).unwrap_or_default());
    // 2^63 is above every volume and still exact.
    if bytes >= 9.3e18 { Err(format!("{text:?} is too large")) } else { Ok(bytes as u64) }
}

/// A time: a bare number of seconds, or Go's form such as `1h30m` or `500ms`, with days in front as `2d`. Empty is 0.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration, such as 1.5, 500ms or 1h30m");
    let seconds = |n: f64| Duration::try_from_secs_f64(n).map_err(|_| wrong());
    if text.is_empty() {
        return Ok(Duration::ZERO);
    }
    if let Ok(number) = text.parse::<f64>() {
        return seconds(number);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "d" => 86_400.0,
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    seconds(total)
}

/// Permission bits in octal, with or without a leading 0.
pub fn octal(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text.trim_start_matches("0o"), 8) {
        Ok(bits) if bits <= 0o777 => Ok(bits),
        _ => Err(format!("{text:?} is no permission mask, such as 022")),
    }
}

/// `97.66 KiB (100000 Bytes)`, or `12 Bytes` below 1024.
pub fn bytes_shown(bytes: u64) -> String {
    let mut number = bytes as f64;
    let mut unit = None;
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if number < 1024.0 {
            break;
        }
        number /= 1024.0;
        unit = Some(next);
    }
    match unit {
        None => format!("{bytes} Bytes"),
        Some(unit) => format!("{number:.2} {unit} ({bytes} Bytes)"),
    }
}

/// `0 B`, `1.0 KiB`, `10 MiB`: one decimal below 10, none from 10 on.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut number = bytes as f64;
    let mut unit = 0;
    while number >= 1024.0 && unit + 1 < units.len() {
        number /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        // What rounds to 10.0 is shown as 10.
        _ if number < 9.95 => format!("{number:.1} {}", units[unit]),
        _ => format!("{number:.0} {}", units[unit]),
    }
}

/// A number with commas between thousands.
pub fn count_shown(count: u64) -> String {
    let digits = count.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    String::from_utf8_lossy(&groups.join(&b',')).into_owned()
}

/// A rate in Mbit/s (10^6 bits), with one of the letters M G T P (factors of 1000); whole Mbit/s come back.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.chars().next_back() {
        Some('M' | 'm') => (&text[..text.len() - 1], 1.0),
        Some('G' | 'g') => (&text[..text.len() - 1], 1e3),
        Some('T' | 't') => (&text[..text.len() - 1], 1e6),
        Some('P' | 'p') => (&text[..text.len() - 1], 1e9),
        _ => (text, 1.0),
    };
    let plain = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let number: f64 = number.parse().ok().filter(|_| plain).ok_or_else(|| format!("{text:?} is no rate, such as 100 or 1.5G"))?;
    Ok((number * factor) as u64)
}

/// A table as all commands draw it: header centred, cells to the right.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    draw(header, rows, None)
}

/// The same with the first column to the left.
pub fn table_left(header: &[&str], rows: &[Vec<String>]) -> String {
    draw(header, rows, Some(0))
}

/// A name for the terminal: what would move the cursor, or worse, is escaped.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn draw(header: &[&str], rows: &[Vec<String>], left: Option<usize>) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([header[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let border: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect::<String>() + "+\n";
    let mut text = border.clone();
    for (cell, width) in header.iter().zip(&widths) {
        let free = width - cell.len();
        // The odd space stands on the left.
        text += &format!("| {}{cell}{} ", " ".repeat(free.div_ceil(2)), " ".repeat(free / 2));
    }
    text += "|\n";
    text += &border;
    for row in &rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            text += &if left == Some(column) { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
        }
        text += "|\n";
    }
    text + &border
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, unit, bytes) in [("4M", 'K', 4 << 20), ("4096", 'K', 4 << 20), ("1.5k", 'B', 1536), ("0", 'G', 0), ("7B", 'M', 7)] {
            assert_eq!(size(text, unit), Ok(bytes), "{text}");
        }
        for text in ["", "4MiB", "GB", "-1", "1e3", "99E", "x"] {
            assert!(size(text, 'M').is_err(), "{text}");
        }
    }

    #[test]
    fn shown_numbers_and_rates() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1024, "1.0 KiB"), (10 << 20, "10 MiB"), (1536 << 20, "1.5 GiB"), (10_200, "10 KiB")]
        {
            assert_eq!(human_bytes(bytes), text);
        }
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count_shown(count), text);
        }
        for (text, mbps) in [("100", 100), ("1.5G", 1500), ("2T", 2_000_000), ("0", 0)] {
            assert_eq!(bandwidth(text), Ok(mbps));
        }
        assert!(bandwidth("-1").is_err() && bandwidth("").is_err() && bandwidth("5K").is_err());
    }

    #[test]
    fn durations() {
        let table = [("", 0), ("1", 1000), ("0.5", 500), ("1.0s", 1000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5d12h", 172_800_000)];
        for (text, millis) in table {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["x", "1x", "h", "-1", "1h 2m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tables_and_numbers() {
        assert_eq!(bytes_shown(807_955), "789.02 KiB (807955 Bytes)");
        assert_eq!(bytes_shown(12), "12 Bytes");
        assert_eq!(octal("022"), Ok(0o22));
        assert!(octal("999").is_err());
        assert_eq!(printable("a b\u{e9}"), "a b\u{e9}");
        assert_eq!(printable("\u{1b}]0;x\u{7}\n"), "\\u{1b}]0;x\\u{7}\\n");
        assert!(table(&["a"], &[vec!["x\ny".into()]]).contains("| x\\ny |"));
        let drawn = table(&["abc", "d"], &[vec!["1".into(), "longer".into()]]);
        assert_eq!(drawn, "+-----+--------+\n| abc |    d   |\n+-----+--------+\n|   1 | longer |\n+-----+--------+\n");
    }
}
