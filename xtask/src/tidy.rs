//! What a compiler does not check: layers, crate fences, file sizes, purpose lines, words, and the paths named in the docs.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → what it may import (`docs/ARCHITECTURE.md`).
const LAYERS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("env", &["types"]),
    ("telemetry", &["env", "types"]),
    ("object", &["env", "telemetry", "types"]),
    ("cache", &["env", "telemetry", "types"]),
    ("meta", &["env", "telemetry", "types"]),
    ("block", &["cache", "object", "env", "telemetry", "types"]),
    ("chunk", &["block", "meta", "cache", "object", "env", "telemetry", "types"]),
    ("vfs", &["chunk", "block", "meta", "cache", "object", "env", "telemetry", "types"]),
    ("jobs", &["chunk", "block", "meta", "cache", "object", "env", "telemetry", "types"]),
    ("http", &["telemetry", "types"]),
    ("fuse", &["vfs", "env", "telemetry", "types"]),
    ("volume", &["vfs", "jobs", "chunk", "block", "meta", "cache", "object", "env", "telemetry", "types"]),
    ("daemon", &["fuse", "volume", "http", "vfs", "jobs", "chunk", "block", "meta", "cache", "object", "env", "telemetry", "types"]),
    ("cli", &["daemon", "volume", "fuse", "http", "vfs", "jobs", "chunk", "block", "meta", "cache", "object", "env", "telemetry", "types"]),
];

/// Crate → where it may be named.
const FENCES: &[(&str, &[&str])] = &[
    ("fuser", &["src/fuse/"]),
    ("hashbrown", &["src/cache/disk/", "src/meta/ops/remove.rs", "src/meta/store/redis/script.rs", "src/meta/view.rs"]),
    ("rusqlite", &["src/meta/store/embedded/"]),
    ("aws_lc_rs", &["src/block/encrypt.rs", "src/meta/secret.rs"]),
    ("md5", &["src/block/private_key.rs", "src/meta/secret.rs"]),
    ("pkcs8", &["src/block/private_key.rs"]),
    ("lz4_flex", &["src/block/compress.rs"]),
    ("aws_sdk_s3", &["src/object/s3/"]),
    ("aws_config", &["src/object/s3/"]),
    ("redis", &["src/meta/store/redis/"]),
    ("flate2", &["src/volume/dump/file.rs", "src/volume/dump/fixture.rs", "src/cli/zip.rs"]),
    ("zstd", &["src/block/compress.rs", "src/volume/dump/file.rs", "src/volume/fsck/fixtures_test.rs"]),
    ("clap", &["src/cli/", "src/main.rs"]),
    ("anyhow", &["src/cli/", "src/main.rs"]),
];

/// What reads a clock or randomness of the system. Only `src/env/` does, so that tests can replace it.
const NONDETERMINISM: &[&str] = &["SystemTime::now", "Instant::now", "getrandom", "rand::"];
/// The runtime's clock is another source that tests can stop.
const CLOCK_OF_RUNTIME: &str = "tokio::time::";
/// Keys and nonces come from the library that encrypts with them.
const RANDOMNESS_OF_KEYS: &[&str] = &["src/block/encrypt.rs", "src/meta/secret.rs"];

/// Lines of code before the tests of a file: above it a file is two ideas.
const CODE_LINES_MAX: usize = 800;

/// Words that name nothing.
const BANNED: &[&str] = &["Manager", "Helper", "Util", "Utils"];

/// All findings, one line each; empty if the tree is tidy.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let mut modules_seen = BTreeSet::new();
    for path in rust_files(root)? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        if !text.starts_with("//! ") {
            findings.push(format!("{name}: does not open with a purpose line (//!)"));
        }
        let code: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
        if code.len() > CODE_LINES_MAX {
            findings.push(format!("{name}: {} lines of code, at most {CODE_LINES_MAX}", code.len()));
        }
        if let Some(module) = module_of(&name) {
            modules_seen.insert(module.to_string());
            findings.extend(layer_findings(&name, module, &code));
        }
        if name.starts_with("src/") {
            findings.extend(word_findings(&name, &code));
            if !name.starts_with("src/env/") && !is_test(&name) {
                findings.extend(nondeterminism_findings(&name, &text));
            }
        }
    }
    for (module, _) in LAYERS.iter().filter(|(module, _)| !modules_seen.contains(*module) && *module != "http") {
        findings.push(format!("src/{module}: named in the layer table but not there"));
    }
    findings.extend(path_findings(root)?);
    Ok(findings)
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut dirs: Vec<PathBuf> = ["src", "tests", "benches", "xtask/src"].iter().map(|dir| root.join(dir)).collect();
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn module_of(name: &str) -> Option<&str> {
    let (module, _) = name.strip_prefix("src/")?.split_once('/')?;
    Some(module)
}

fn layer_findings(name: &str, module: &str, code: &[&str]) -> Vec<String> {
    let Some((_, allowed)) = LAYERS.iter().find(|(m, _)| *m == module) else {
        return vec![format!("{name}: module {module} is not in the layer table")];
    };
    let mut findings = Vec::new();
    for (number, line) in code.iter().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for target in imports(line) {
            if target != module && LAYERS.iter().any(|(m, _)| *m == target) && !allowed.contains(&target) {
                findings.push(format!("{name}:{}: {module} may not import {target}", number + 1));
            }
        }
        for (krate, places) in FENCES {
            // A module of ours may bear the name of a crate: then it stands behind another one.
            let path = format!("{krate}::");
            let mut places_named = line.match_indices(path.as_str()).map(|(at, _)| &line[..at]);
            let named = places_named.any(|before| !before.ends_with(|c: char| c == ':' || c == '_' || c.is_ascii_alphanumeric()));
            if named && !places.iter().any(|place| name.starts_with(place)) {
                findings.push(format!("{name}:{}: {krate} belongs into {}", number + 1, places.join(" or ")));
            }
        }
    }
    findings
}

/// Whether a file holds nothing but tests, by its name.
fn is_test(name: &str) -> bool {
    name.split(['/', '.'])
        .any(|part| matches!(part, "tests" | "testing" | "conformance") || part.ends_with("_test") || part.ends_with("_tests"))
}

fn nondeterminism_findings(name: &str, text: &str) -> Vec<String> {
    // Everything up to the tests in the file; what is only compiled for tests may stand before them, too.
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let of_runtime = |line: &str| line.contains(CLOCK_OF_RUNTIME) && line.contains("Instant");
    let stoppable = code.lines().any(|line| line.starts_with("use ") && of_runtime(line));
    let mut findings = Vec::new();
    for (number, line) in code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for source in NONDETERMINISM.iter().filter(|source| line.contains(**source)) {
            let instant = *source == "Instant::now" && !line.contains("std::time::Instant") && (stoppable || of_runtime(line));
            let of_keys = *source == "rand::" && RANDOMNESS_OF_KEYS.contains(&name);
            if !instant && !of_keys {
                findings.push(format!("{name}:{}: {source} is read in src/env/ only", number + 1));
            }
        }
    }
    findings
}

/// The modules a line names as `crate::MODULE`.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(move |(at, _)| {
        let rest = &line[at + "crate::".len()..];
        rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|word| !word.is_empty())
    })
}

fn word_findings(name: &str, code: &[&str]) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in code.iter().enumerate() {
        for word in BANNED {
            let declares = ["struct ", "enum ", "trait "].iter().any(|kind| {
                line.split_once(kind).is_some_and(|(_, rest)| {
                    let ident: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    ident.ends_with(word)
                })
            });
            if declares {
                findings.push(format!("{name}:{}: a name ending in {word} names nothing", number + 1));
            }
        }
    }
    findings
}

/// Every path in backquotes in the map of the code must exist.
fn path_findings(root: &Path) -> Result<Vec<String>> {
    let name = "docs/ARCHITECTURE.md";
    let text = fs::read_to_string(root.join(name)).with_context(|| format!("cannot read {name}"))?;
    let mut findings = Vec::new();
    for quoted in text.split('`').skip(1).step_by(2) {
        let looks_like_path = ["src/", "tests/", "docs/", "xtask/", "benches/", "deploy/"].iter().any(|top| quoted.starts_with(top));
        if looks_like_path && !root.join(quoted).exists() {
            findings.push(format!("{name}: names {quoted}, which is not there"));
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let findings = check(&crate::root()).expect("readable");
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }

    #[test]
    fn clocks_and_randomness_are_seen() {
        for (text, count) in [
            ("fn f() { let t = Instant::now(); }", 1),
            ("let t = std::time::SystemTime::now();\n// SystemTime::now is not read here", 1),
            ("use tokio::time::{Instant, sleep};\nfn f() { Instant::now(); std::time::Instant::now(); }", 1),
            ("let t = tokio::time::Instant::now();", 0),
            ("let n = rand::random::<u64>(); getrandom::fill(&mut key);", 2),
            ("fn f() {}\n#[cfg(test)]\nmod tests {\n    let t = Instant::now();\n}", 0),
        ] {
            assert_eq!(nondeterminism_findings("src/vfs/x.rs", text).len(), count, "{text}");
        }
        assert!(nondeterminism_findings("src/block/encrypt.rs", "rand::fill(&mut nonce)").is_empty());
        assert!(is_test("src/meta/facts_test.rs") && is_test("src/jobs/drain/tests.rs") && !is_test("src/vfs/attest.rs"));
    }

    #[test]
    fn imports_are_seen() {
        let seen: Vec<_> = imports("use crate::meta::{key}; crate::object::file::X").collect();
        assert_eq!(seen, ["meta", "object"]);
        assert_eq!(layer_findings("src/block/x.rs", "block", &["use crate::meta::Meta;"]).len(), 1);
        assert_eq!(layer_findings("src/vfs/x.rs", "vfs", &["let c = rusqlite::Connection::open(p);"]).len(), 1);
    }
}
