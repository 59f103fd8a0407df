//! Names, targets and values as text of a JSON dump (metadata §15.2).

use std::fmt::Write;

/// Text for bytes: what is no UTF-8, code points up to the space, `%`, `"` and `\` become `%XX`; everything else stays.
///
/// U+FFFD stays as it is, too, although the reference writes only its first byte there: what it writes cannot be read back.
pub fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\0'..=' ' | '%' | '"' | '\\' => percent(&mut text, c as u8),
                // Read back as it stands by every reader.
                c => text.push(c),
            }
        }
        for byte in part.invalid() {
            percent(&mut text, *byte);
        }
    }
    text
}

fn percent(text: &mut String, byte: u8) {
    write!(text, "%{byte:02X}").expect("a string takes what is written");
}

/// The bytes of an escaped text. A `%` that no two upper-case digits follow is itself.
pub fn unescape(text: &str) -> Vec<u8> {
    let digit = |c: &u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'A'..=b'F' => Some(c - b'A' + 10),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%'
            && let [high, low, after @ ..] = after
            && let (Some(high), Some(low)) = (digit(high), digit(low))
        {
            bytes.push(high << 4 | low);
            rest = after;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

/// JSON as the reference writes it: what HTML gives a meaning, and the two line separators of Unicode, as `\u`. None of them occurs outside
/// of strings.
pub fn html_safe(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => text.push_str("\\u003c"),
            '>' => text.push_str("\\u003e"),
            '&' => text.push_str("\\u0026"),
            '\u{2028}' => text.push_str("\\u2028"),
            '\u{2029}' => text.push_str("\\u2029"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_of_the_specification() {
        let table: [(&[u8], &str); 6] = [
            (b"a b\n\t", "a%20b%0A%09"),
            (b"%41", "%2541"),
            (b"raw-\xff\xfe%41", "raw-%FF%FE%2541"),
            ("ü日🙂<&>".as_bytes(), "ü日🙂<&>"),
            (b"\"\\", "%22%5C"),
            ("\u{fffd}\x7f".as_bytes(), "\u{fffd}\x7f"),
        ];
        for (bytes, text) in table {
            assert_eq!((escape(bytes).as_str(), unescape(text).as_slice()), (text, bytes));
        }
        assert_eq!(unescape("%zz%4%e9%"), b"%zz%4%e9%");
        assert_eq!(html_safe("\"<&>\u{2028}é\""), "\"\\u003c\\u0026\\u003e\\u2028é\"");
    }

    proptest! {
        #[test]
        fn bytes_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(unescape(&escape(&bytes)), bytes);
        }
    }
}
