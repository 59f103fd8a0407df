//! `MetaUrl`: where the metadata of a volume is.

use std::fmt;
use std::path::{Path, PathBuf};

/// The first argument of most commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaUrl {
    /// A directory of this host that holds the whole volume.
    Embedded(PathBuf),
}

impl MetaUrl {
    /// Reads the argument. A path begins with `/`, `.` or `~`, or names a directory that exists; everything else is the URL of a server.
    /// Paths come back absolute, so that a later change of the working directory does not matter.
    pub fn parse(text: &str) -> Result<MetaUrl, String> {
        if text.is_empty() {
            return Err("the volume is given by a directory, e.g. `./vol`; the argument is empty".into());
        }
        let path = match (text.strip_prefix("~/"), text) {
            (Some(rest), _) => home()?.join(rest),
            (None, "~") => home()?,
            _ => PathBuf::from(text),
        };
        let is_path = text.starts_with(['/', '.', '~']) || (!text.contains("://") && Path::new(text).is_dir());
        if is_path {
            return match std::path::absolute(&path) {
                Ok(path) => Ok(MetaUrl::Embedded(path)),
                Err(error) => Err(format!("the working directory is not known ({error}); give {text} as an absolute path")),
            };
        }
        match text.split_once("://") {
            None => Err(format!(
                "there is no directory {text}; to make a new volume write ./{text} (without ./ it means a Redis server, which this build \
                 does not support)"
            )),
            Some(("redis" | "rediss" | "unix", _)) => {
                Err("Redis volumes are not supported by this build; give a directory, e.g. `./vol`, to keep the volume on this host".into())
            }
            Some((scheme, _)) => Err(format!("Invalid meta driver: {scheme}")),
        }
    }

    /// The directory of an embedded volume.
    pub fn dir(&self) -> &Path {
        match self {
            MetaUrl::Embedded(dir) => dir,
        }
    }

    /// The directory of a volume that lives on this host as a whole.
    pub fn local_dir(&self) -> Option<&Path> {
        match self {
            MetaUrl::Embedded(dir) => Some(dir),
        }
    }
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dir().display())
    }
}

fn home() -> Result<PathBuf, String> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from).ok_or("~ means $HOME, which is not set".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_servers() {
        assert_eq!(MetaUrl::parse("/a/b"), Ok(MetaUrl::Embedded("/a/b".into())));
        assert!(MetaUrl::parse("./x").expect("a path").dir().is_absolute());
        assert!(MetaUrl::parse("src").is_ok(), "an existing directory needs no ./");
        for (text, what) in [
            ("redis://:secret@h/1", "Redis"),
            ("localhost", "Redis"),
            ("foo://x", "Invalid meta driver: foo"),
            ("", "empty"),
            ("sqlite3://a.db", "Invalid meta driver: sqlite3"),
        ] {
            let error = MetaUrl::parse(text).expect_err("refused");
            assert!(error.contains(what) && !error.contains("secret"), "{error}");
        }
    }
}
