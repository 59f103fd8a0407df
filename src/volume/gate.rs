//! Which volumes this build may touch: versions, and features it does not have.
//!
//! A volume that needs what we do not do is refused as a whole. Using it in part would break it for those who do: an ACL that nobody
//! enforces, usage that is not counted, a change that is not logged.

use crate::meta::setting::Setting;
use std::cmp::Ordering;

/// The feature level this client presents to a volume (metadata §4.2).
pub const CLIENT_LEVEL: &str = "1.4.1";

/// Says why the volume cannot be used, naming the field of its setting.
pub fn check(setting: &Setting) -> Result<(), String> {
    let text = |name: &str| setting.document().get(name).and_then(|value| value.as_str()).unwrap_or_default();
    check_version(setting, CLIENT_LEVEL)?;
    let refuse = |name: &str, value: &dyn std::fmt::Display| {
        Err(format!("the volume has {name} = {value}, which this build does not support; use it with a client that does"))
    };
    if !matches!(setting.storage(), "file" | "s3" | "minio") {
        return refuse("Storage", &setting.storage());
    }
    if !text("RangerService").is_empty() {
        return refuse("RangerService", &text("RangerService"));
    }
    Ok(())
}

/// Says why the volume cannot be changed, although it can be read.
pub fn check_writable(setting: &Setting) -> Result<(), String> {
    if setting.change_log() {
        return Err("the volume has ChangeLog = true: this build does not log changes, and whoever follows the log would miss them; \
                    mount it read-only, or turn the log off first"
            .into());
    }
    Ok(())
}

/// Whether a client of this version may use the volume.
pub fn check_version(setting: &Setting, version: &str) -> Result<(), String> {
    let limits = [
        ("MinClientVersion", setting.min_client_version(), Ordering::Less),
        ("MaxClientVersion", setting.max_client_version(), Ordering::Greater),
    ];
    for (name, limit, wrong) in limits.into_iter().filter(|(_, limit, _)| !limit.is_empty()) {
        match compare_versions(version, limit) {
            Some(order) if order == wrong => {
                return Err(format!("check version: {name} of the volume is {limit}, this client is of level {version}"));
            }
            Some(_) => {}
            None => {
                return Err(format!("check version: {name} of the volume is {limit:?} and the client's {version:?}: one is no version"));
            }
        }
    }
    Ok(())
}

/// Compares versions as metadata §4.2 says; `None` if one of them is none.
pub fn compare_versions(a: &str, b: &str) -> Option<Ordering> {
    let (core_a, pre_a) = parse_version(a)?;
    let (core_b, pre_b) = parse_version(b)?;
    // A version without pre-release is later than any of its pre-releases.
    let pre = match (pre_a.is_empty(), pre_b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => pre_a.cmp(pre_b),
    };
    Some(core_a.cmp(&core_b).then(pre))
}

fn parse_version(text: &str) -> Option<([u64; 3], &str)> {
    let text = text.split('+').next().unwrap_or_default();
    let (core, pre) = text.split_once('-').unwrap_or((text, ""));
    let mut numbers = [0; 3];
    let parts: Vec<&str> = core.split('.').collect();
    if parts.len() > numbers.len() {
        return None;
    }
    for (number, part) in numbers.iter_mut().zip(parts) {
        *number = part.parse().ok()?;
    }
    Some((numbers, pre))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_in_order() {
        let ascending = ["1.0", "1.1.0-A", "1.1.0-beta1", "1.1.0-dev", "1.1.0", "1.4.1+2026.abc", "1.5.0-A", "2"];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), Some(i.cmp(&j)), "{a} {b}");
            }
        }
        assert_eq!(compare_versions("1.x", "1"), None);
        assert_eq!(compare_versions("1.2.3.4", "1"), None);
    }

    #[test]
    fn refusals_name_the_field() {
        let plain = Setting::new("vol", "u", "file", "/x/", 4096);
        assert_eq!(check(&plain), Ok(()));
        let mut logged = plain.clone();
        logged.set("ChangeLog", json!(true));
        assert_eq!(check(&logged), Ok(()));
        assert!(check_writable(&logged).expect_err("refused").contains("ChangeLog"));
        for (field, value) in [("Storage", json!("oss")), ("MinClientVersion", json!("1.5.0-A")), ("MaxClientVersion", json!("1.3.9"))] {
            let mut setting = plain.clone();
            setting.set(field, value);
            assert!(check(&setting).expect_err("refused").contains(field), "{field}");
        }
    }
}
