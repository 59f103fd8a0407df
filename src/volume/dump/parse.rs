//! JSON read piece by piece, without recursion and without keeping what was read.

use serde_json::Value;
use std::io::BufRead;

/// Longest value read as a whole: the slice list of one file, at 60 bytes a slice good for four million of them.
const VALUE_BYTES_MAX: usize = 256 << 20;

/// A reader of one document.
pub struct Parser<R> {
    input: R,
    line: u64,
}

impl<R: BufRead> Parser<R> {
    /// At the start of the document.
    pub fn new(input: R) -> Parser<R> {
        Parser { input, line: 1 }
    }

    /// An error that says where.
    pub fn wrong(&self, what: impl std::fmt::Display) -> String {
        format!("line {}: {what}", self.line)
    }

    fn peek(&mut self) -> Result<Option<u8>, String> {
        loop {
            match self.input.fill_buf() {
                Ok(bytes) => return Ok(bytes.first().copied()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.wrong(format_args!("cannot read on: {error}"))),
            }
        }
    }

    fn take(&mut self, byte: u8) {
        if byte == b'\n' {
            self.line += 1;
        }
        self.input.consume(1);
    }

    /// The next byte that is not white space; it stays.
    fn token(&mut self) -> Result<Option<u8>, String> {
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.take(byte);
        }
        Ok(None)
    }

    /// Takes this character.
    pub fn expect(&mut self, wanted: u8) -> Result<(), String> {
        match self.token()? {
            Some(byte) if byte == wanted => {
                self.take(byte);
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
            self.take(b'}');
            return Ok(None);
        }
        if !std::mem::replace(first, false) {
            self.expect(b',')?;
        }
        if self.token()? != Some(b'"') {
            return Err(self.wrong("a name in quotes should be here"));
        }
        let name = match self.value()? {
            Value::String(name) => name,
            _ => return Err(self.wrong("a name in quotes should be here")),
        };
        self.expect(b':')?;
        Ok(Some(name))
    }

    /// A whole value.
    pub fn value(&mut self) -> Result<Value, String> {
        let mut text = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        self.token()?;
        loop {
            let Some(byte) = self.peek()? else {
                if depth == 0 && !quoted && !text.is_empty() {
                    break;
                }
                return Err(self.wrong("it ends in the middle"));
            };
            // A number or word ends before what cannot belong to it.
            if depth == 0 && !quoted && !text.is_empty() && (byte.is_ascii_whitespace() || matches!(byte, b',' | b'}' | b']' | b':')) {
                break;
            }
            self.take(byte);
            text.push(byte);
            if text.len() > VALUE_BYTES_MAX {
                return Err(self.wrong("a single value is larger than 256 MiB"));
            }
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                b'{' | b'[' if !quoted => depth += 1,
                b'}' | b']' if !quoted => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && !quoted && matches!(byte, b'"' | b'}' | b']') {
                break;
            }
        }
        serde_json::from_slice(&text).map_err(|error| self.wrong(format_args!("no JSON value: {error}")))
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
    use serde_json::json;

    #[test]
    fn values_one_after_another() {
        let text = r#" { "a" : 1 ,"b":[1,{"x":"}\"]"}], "c":"\\", "n":18446744073709551615 , "t":true}  "#;
        let mut parser = Parser::new(text.as_bytes());
        parser.expect(b'{').expect("an object");
        let mut first = true;
        let mut members = Vec::new();
        while let Some(name) = parser.member(&mut first).expect("a member") {
            members.push((name, parser.value().expect("a value")));
        }
        let expected = [("a", json!(1)), ("b", json!([1, {"x": "}\"]"}])), ("c", json!("\\")), ("n", json!(u64::MAX)), ("t", json!(true))];
        assert_eq!(members, expected.map(|(name, value)| (name.to_string(), value)));
        assert_eq!(parser.end(), Ok(()));
    }

    #[test]
    fn what_is_cut_or_wrong_is_an_error() {
        for text in ["", "{\"a\":1", "[1", "\"x", "tru", "{]", "1 2", "1.5.5"] {
            let mut parser = Parser::new(text.as_bytes());
            assert!(parser.value().and_then(|_| parser.end()).is_err(), "{text}");
        }
    }
}
