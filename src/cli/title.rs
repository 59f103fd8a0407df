//! The command line as `ps` shows it, without passwords (cli §1.5).

use std::fs;

/// Options whose value is a secret.
const SECRET_OPTIONS: &[&str] = &["secret-key", "session-token"];
const MASK: &str = "****";

/// The text with the password of a URL replaced: from the first colon after `://` up to the last `@`.
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    match rest.split_once(':') {
        Some((user, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{user}:{MASK}@{host}"),
            None => text.into(),
        },
        None => text.into(),
    }
}

/// All words of a command line with what is secret in them replaced.
fn masked(words: &[String]) -> Vec<String> {
    let mut shown = Vec::with_capacity(words.len());
    let mut hide = false;
    for word in words {
        let bare = word.trim_start_matches('-');
        let is_option = bare.len() < word.len();
        shown.push(match bare.split_once('=') {
            _ if hide => MASK.into(),
            Some((name, _)) if is_option && SECRET_OPTIONS.contains(&name) => {
                format!("{}={MASK}", &word[..word.len() - bare.len() + name.len()])
            }
            _ => without_password(word),
        });
        hide = !hide && is_option && SECRET_OPTIONS.contains(&bare);
    }
    shown
}

/// Overwrites what the kernel shows of this process's command line. Must come after the last use of `std::env::args`; does nothing
/// where it cannot.
pub fn hide_secrets() {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let shown = masked(&words);
    if shown == words {
        return;
    }
    let Some((start, end)) = argument_area() else { return };
    let mut text = shown.join("\0").into_bytes();
    // A mask may be longer than a short password; the last words give way.
    text.resize(end - start, 0);
    if let Some(last) = text.last_mut() {
        *last = 0;
    }
    // SAFETY: the kernel laid this area out for the arguments of this process and says where it is; it is writable and lives as long as
    // the process, `text` has exactly its length, and nothing reads the arguments from now on.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), start as *mut u8, text.len()) };
}

/// Fields 48 and 49 of `/proc/self/stat`.
fn argument_area() -> Option<(usize, usize)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<usize>().ok();
    let (start, end) = (field(48)?, field(49)?);
    (start > 0 && start < end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_and_keys_are_replaced() {
        for (text, shown) in [
            ("redis://:pw@h:6379/1", "redis://:****@h:6379/1"),
            ("redis://user:p@w:x@h/1", "redis://user:****@h/1"),
            ("redis://h:6379/1", "redis://h:6379/1"),
            ("/dir:with@signs", "/dir:with@signs"),
        ] {
            assert_eq!(without_password(text), shown);
        }
        let line = "juicefs format --secret-key abc -session-token=def --access-key ak redis://:pw@h/1 vol";
        let words: Vec<String> = line.split(' ').map(String::from).collect();
        let shown = "juicefs format --secret-key **** -session-token=**** --access-key ak redis://:****@h/1 vol";
        assert_eq!(masked(&words).join(" "), shown);
    }

    #[test]
    fn the_area_holds_the_arguments() {
        let (start, end) = argument_area().expect("Linux tells it");
        let words: usize = std::env::args_os().map(|word| word.len() + 1).sum();
        assert_eq!(end - start, words);
    }
}
