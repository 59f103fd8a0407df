//! The few forms of protobuf that a binary dump uses: variable-length numbers and bytes with a length.

/// Appends to a message.
#[derive(Default)]
pub struct Message(pub Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// A number; zero is left out, as all of the format's readers expect.
    pub fn number(mut self, field: u32, number: u64) -> Message {
        if number != 0 {
            self.varint(u64::from(field) << 3);
            self.varint(number);
        }
        self
    }

    /// A signed number, in its ten-byte form if it is negative.
    pub fn signed(self, field: u32, number: i64) -> Message {
        self.number(field, number.cast_unsigned())
    }

    /// Bytes or text; none are left out.
    pub fn bytes(mut self, field: u32, bytes: &[u8]) -> Message {
        if !bytes.is_empty() {
            self.nested(field, bytes);
        }
        self
    }

    /// Numbers in one run.
    pub fn packed(self, field: u32, numbers: &[u64]) -> Message {
        let mut run = Message::default();
        numbers.iter().for_each(|number| run.varint(*number));
        self.bytes(field, &run.0)
    }

    /// One element of a list of messages; an empty one counts, too.
    pub fn nested(&mut self, field: u32, message: &[u8]) {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(message.len() as u64);
        self.0.extend_from_slice(message);
    }
}

/// A field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    /// A number.
    Number(u64),
    /// Bytes, text, a message or a run of numbers.
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    /// The number; `None` if it is none.
    pub fn number(self) -> Option<u64> {
        match self {
            Field::Number(number) => Some(number),
            Field::Bytes(_) => None,
        }
    }

    /// The bytes; `None` if it is a number.
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Field::Bytes(bytes) => Some(bytes),
            Field::Number(_) => None,
        }
    }
}

/// The fields of a message in order; `None` for what is no message. Fields of the two fixed sizes are passed over.
pub fn fields(mut message: &[u8]) -> Option<Vec<(u32, Field<'_>)>> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let field = u32::try_from(tag >> 3).ok().filter(|field| *field > 0)?;
        match tag & 7 {
            0 => fields.push((field, Field::Number(varint(&mut message)?))),
            1 => message = message.get(8..)?,
            2 => {
                let count = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(count)?;
                message = rest;
                fields.push((field, Field::Bytes(bytes)));
            }
            5 => message = message.get(4..)?,
            _ => return None,
        }
    }
    Some(fields)
}

/// Takes a number of at most ten bytes.
pub fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7F);
        if shift == 63 && part > 1 {
            return None;
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A field of a message, zero if it is not there; `None` if it is no number.
pub fn number(fields: &[(u32, Field<'_>)], field: u32) -> Option<u64> {
    fields.iter().rev().find(|(number, _)| *number == field).map_or(Some(0), |(_, value)| value.number())
}

/// A field of a message, empty if it is not there; `None` if it is a number.
pub fn bytes<'a>(fields: &[(u32, Field<'a>)], field: u32) -> Option<&'a [u8]> {
    fields.iter().rev().find(|(number, _)| *number == field).map_or(Some(&[]), |(_, value)| value.bytes())
}

/// All numbers of a repeated field, in runs or one by one.
pub fn numbers(fields: &[(u32, Field<'_>)], field: u32) -> Option<Vec<u64>> {
    let mut all = Vec::new();
    for (_, value) in fields.iter().filter(|(number, _)| *number == field) {
        match value {
            Field::Number(number) => all.push(*number),
            Field::Bytes(run) => {
                let mut run = *run;
                while !run.is_empty() {
                    all.push(varint(&mut run)?);
                }
            }
        }
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_of_the_protobuf_manual() {
        let mut message = Message::default().number(1, 150).number(7, 0).bytes(2, b"testing").signed(3, -1).packed(6, &[3, 270, 86_942]);
        message.nested(5, b"");
        let expected = b"\x08\x96\x01\x12\x07testing\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x32\x06\x03\x8e\x02\x9e\xa7\x05\x2a\x00";
        assert_eq!(message.0, expected);
        let fields = fields(&message.0).expect("a message");
        assert_eq!((number(&fields, 1), number(&fields, 7), bytes(&fields, 2)), (Some(150), Some(0), Some(&b"testing"[..])));
        assert_eq!((number(&fields, 3), numbers(&fields, 6)), (Some(u64::MAX), Some(vec![3, 270, 86_942])));
        assert_eq!((number(&fields, 2), bytes(&fields, 1)), (None, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = fields(&bytes);
        }
    }
}
