//! Decoders against bytes that nobody meant: valid encodings changed, cut, extended and mixed. For tests.
//!
//! In the test command each decoder gets the same few thousand inputs every time; with `PANDO_SOAK` new ones for a minute, from a seed that is
//! printed and that `PANDO_SEED` repeats.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

/// Inputs of one decoder in the test command: a fraction of a second of an unoptimised decoder of short records.
const COUNT: u64 = 4000;
/// Time for one decoder in the long run.
const SOAK: Duration = Duration::from_secs(60);
/// Numbers at which arithmetic goes wrong.
const NUMBERS: [u64; 10] = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
/// What separates and escapes in texts, and what no text holds.
const SYMBOLS: &[u8] = b"\0/\\%?&=:@#,.;\"'{}[]<>+- \n\xff\xc3";

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

/// Calls `check` with each of the `valid` encodings and with many inputs made of them. It decodes, must not panic, and may assert what holds
/// of everything that can be decoded.
pub(crate) fn decoder(valid: &[Vec<u8>], check: impl FnMut(&[u8])) {
    decoder_of(COUNT, valid, check);
}

/// The same with so many inputs in the test command, for decoders that take their time.
pub(crate) fn decoder_of(count: u64, valid: &[Vec<u8>], mut check: impl FnMut(&[u8])) {
    let soak = std::env::var_os("PANDO_SOAK").is_some();
    let given = std::env::var("PANDO_SEED").ok().and_then(|seed| seed.parse().ok());
    let time = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let seed = given.unwrap_or_else(|| if soak { time() } else { 1 });
    let mut run = |bytes: &[u8]| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(bytes))) {
            eprintln!("PANDO_SEED={seed}, the input: \"{}\"", bytes.escape_ascii());
            resume_unwind(panic);
        }
    };
    valid.iter().for_each(|bytes| run(bytes));
    let (mut dice, start, mut done) = (Dice(seed | 1), Instant::now(), 0);
    while if soak { start.elapsed() < SOAK } else { done < count } {
        let mut bytes = valid[dice.below(valid.len())].clone();
        for _ in 0..=dice.below(3) {
            change(&mut bytes, valid, &mut dice);
        }
        run(&bytes);
        done += 1;
    }
    if soak {
        println!("PANDO_SEED={seed}: {done} inputs");
    }
}

/// One change.
fn change(bytes: &mut Vec<u8>, valid: &[Vec<u8>], dice: &mut Dice) {
    let (at, end) = (dice.below(bytes.len()), dice.below(bytes.len() + 1));
    match dice.below(9) {
        0 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
        1 if !bytes.is_empty() => bytes[at] = SYMBOLS[dice.below(SYMBOLS.len())],
        2 => bytes.truncate(end),
        3 => drop(bytes.drain(at.min(end)..end)),
        4 => bytes.extend((0..=dice.below(20)).map(|_| dice.roll() as u8)),
        5 => {
            // A part of another one, or of this one a second time.
            let other = &valid[dice.below(valid.len())];
            let from = dice.below(other.len() + 1);
            let to = from + dice.below(other.len() - from + 1);
            let until = if dice.below(2) == 0 { end } else { end + dice.below(bytes.len() - end + 1) };
            bytes.splice(end..until, other[from..to].iter().copied());
        }
        6 | 7 => {
            let number = NUMBERS[dice.below(NUMBERS.len())].wrapping_add(dice.below(3) as u64).wrapping_sub(1);
            let width = 1 << dice.below(4);
            let mut text = number.to_be_bytes()[8 - width..].to_vec();
            if dice.below(2) == 0 {
                text.reverse();
            }
            for (byte, new) in bytes.iter_mut().skip(at).zip(text) {
                *byte = new;
            }
        }
        _ => {
            // A number in a text becomes another one.
            if let Some(digit) = bytes.iter().skip(at).position(u8::is_ascii_digit).map(|digit| digit + at) {
                let len = bytes[digit..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let number = NUMBERS[dice.below(NUMBERS.len())].to_string();
                bytes.splice(digit..digit + len, number.into_bytes());
            }
        }
    }
}

#[test]
#[should_panic(expected = "found")]
fn a_mistake_of_a_decoder_is_found() {
    decoder(&[b"length 8".to_vec(), b"another".to_vec()], |bytes| assert!(!bytes.starts_with(b"another8"), "found"));
}
