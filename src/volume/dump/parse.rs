//! JSON read piece by piece, without recursion and without keeping what was read.

use serde::Deserialize;
use std::io::BufRead;

/// Longest value read as a whole: the slice list of one file, at 60 bytes a slice good for four million of them.
const VALUE_BYTES_MAX: usize = 256 << 20;
/// Room that is kept for the next value.
const VALUE_BYTES_KEPT: usize = 1 << 20;

/// A reader of one document.
pub struct Parser<R> {
    input: R,
    line: u64,
    /// The value that was read last.
    text: Vec<u8>,
}

/// How far a value has been read.
#[derive(Default)]
struct Scan {
    depth: usize,
    quoted: bool,
    escaped: bool,
    begun: bool,
}

impl Scan {
    /// How many of these bytes belong to the value, and whether it ends with them.
    fn run(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (at, &byte) in bytes.iter().enumerate() {
            if self.quoted {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.quoted = false,
                    _ => continue,
                }
                if self.depth == 0 && !self.quoted {
                    return (at + 1, true);
                }
                continue;
            }
            // A number or word ends before what cannot belong to it.
            if self.may_end() && (byte.is_ascii_whitespace() || matches!(byte, b',' | b'}' | b']' | b':')) {
                return (at, true);
            }
            self.begun = true;
            match byte {
                b'"' => self.quoted = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (at + 1, true);
                    }
                }
                _ => {}
            }
        }
        (bytes.len(), false)
    }

    /// Whether it is whole if nothing follows.
    fn may_end(&self) -> bool {
        self.begun && self.depth == 0 && !self.quoted
    }
}

impl<R: BufRead> Parser<R> {
    /// At the start of the document.
    pub fn new(input: R) -> Parser<R> {
        Parser { input, line: 1, text: Vec::new() }
    }

    /// An error that says where.
    pub fn wrong(&self, what: impl std::fmt::Display) -> String {
        format!("line {}: {what}", self.line)
    }

    /// Looks at what is in memory, until it tells how many bytes of it are taken, and that no more are wanted. False at the end of the input.
    fn walk(&mut self, mut look: impl FnMut(&mut Vec<u8>, &[u8]) -> (usize, bool)) -> Result<bool, String> {
        loop {
            let bytes = match self.input.fill_buf() {
                Ok([]) => return Ok(false),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.wrong(format_args!("cannot read on: {error}"))),
            };
            let (count, done) = look(&mut self.text, bytes);
            self.line += bytes[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
            self.input.consume(count);
            if done {
                return Ok(true);
            }
        }
    }

    /// The next byte that is not white space; it stays.
    fn token(&mut self) -> Result<Option<u8>, String> {
        let mut found = None;
        self.walk(|_, bytes| {
            let count = bytes.iter().position(|byte| !byte.is_ascii_whitespace());
            found = count.map(|at| bytes[at]);
            (count.unwrap_or(bytes.len()), count.is_some())
        })?;
        Ok(found)
    }

    /// Takes this character.
    pub fn expect(&mut self, wanted: u8) -> Result<(), String> {
        match self.token()? {
            Some(byte) if byte == wanted => {
                self.input.consume(1);
                Ok(())
            }
            Some(byte) => Err(self.wrong(format_args!("{:?} where {:?} should be", byte as char, wanted as char))),
            None => Err(self.wrong("it ends in the middle")),
        }
    }

    /// The name of the next member of an object, after its colon, or the end of the object, which is taken. `first` is whether none was
    /// read yet.
    pub fn member(&mut self, first: &mut bool) -> Result<Option<String>, String> {
        if self.token()? == Some(b'}') {
            self.input.consume(1);
            return Ok(None);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',')?;
        }
        if self.token()? != Some(b'"') {
            return Err(self.wrong("a name in quotes should be here"));
        }
        let name = self.value()?;
        self.expect(b':')?;
        Ok(Some(name))
    }

    /// A whole value, as whatever it is wanted.
    pub fn value<'a, T: Deserialize<'a>>(&'a mut self) -> Result<T, String> {
        self.take()?;
        let line = self.line;
        serde_json::from_slice(&self.text).map_err(|error| {
            // The place it tells is within the value.
            let told = error.to_string();
            format!("line {line}: {}", told.rsplit_once(" at line ").map_or(&*told, |(what, _)| what))
        })
    }

    /// Takes a whole value.
    fn take(&mut self) -> Result<(), String> {
        self.text.clear();
        self.text.shrink_to(VALUE_BYTES_KEPT);
        self.token()?;
        let mut scan = Scan::default();
        let ended = self.walk(|text, bytes| {
            let (count, ended) = scan.run(bytes);
            text.extend_from_slice(&bytes[..count]);
            (count, ended || text.len() > VALUE_BYTES_MAX)
        })?;
        if self.text.len() > VALUE_BYTES_MAX {
            return Err(self.wrong("a single value is larger than 256 MiB"));
        }
        if ended || scan.may_end() { Ok(()) } else { Err(self.wrong("it ends in the middle")) }
    }

    /// Nothing may follow.
    pub fn end(&mut self) -> Result<(), String> {
        match self.token()? {
            None => Ok(()),
            Some(_) => Err(self.wrong("something follows the end")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn values_one_after_another() {
        let text = r#" { "a" : 1 ,"b":[1,{"x":"}\"]"}], "c":"\\", "n":18446744073709551615 , "t":true}  "#;
        let mut parser = Parser::new(text.as_bytes());
        parser.expect(b'{').expect("an object");
        let mut first = true;
        let mut members = Vec::new();
        while let Some(name) = parser.member(&mut first).expect("a member") {
            members.push((name, parser.value::<Value>().expect("a value")));
        }
        let expected = [("a", json!(1)), ("b", json!([1, {"x": "}\"]"}])), ("c", json!("\\")), ("n", json!(u64::MAX)), ("t", json!(true))];
        assert_eq!(members, expected.map(|(name, value)| (name.to_string(), value)));
        assert_eq!(parser.end(), Ok(()));
    }

    #[test]
    fn wherever_the_input_is_cut_into_pieces() {
        let text = "{\"a\\\\\":[1,\"\\\"]}\"],\n \"b\" : -12.5e3 ,\"c\":\"\u{e9}\", \"d\" :{ }}";
        for size in 1..text.len() {
            let mut parser = Parser::new(std::io::BufReader::with_capacity(size, text.as_bytes()));
            parser.expect(b'{').expect("an object");
            let (mut first, mut members) = (true, Vec::new());
            while let Some(name) = parser.member(&mut first).expect("a member") {
                members.push((name, parser.value::<Value>().expect("a value")));
            }
            let expected = [("a\\", json!([1, "\"]}"])), ("b", json!(-12500.0)), ("c", json!("\u{e9}")), ("d", json!({}))];
            assert_eq!(members, expected.map(|(name, value)| (name.to_string(), value)), "{size}");
            assert_eq!((parser.end(), parser.line), (Ok(()), 2));
        }
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error() {
        for text in ["", "{\"a\":1", "[1", "\"x", "tru", "{]", "1 2", "1.5.5"] {
            let mut parser = Parser::new(text.as_bytes());
            assert!(parser.value::<Value>().and_then(|_| parser.end()).is_err(), "{text}");
        }
    }
}
