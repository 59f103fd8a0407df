//! `MetaUrl`: where the metadata of a volume is.

use crate::meta::store::redis::url::{ProcessEnvironment, RedisUrl};
use std::fmt;
use std::path::{Path, PathBuf};

/// The first argument of most commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetaUrl {
    /// A directory of this host that holds the whole volume.
    Embedded(PathBuf),
    /// A Redis server, sentinels or a cluster.
    Redis(Box<RedisUrl>),
}

impl MetaUrl {
    /// Reads the argument. A path begins with `/`, `.` or `~`, or names a directory that exists; everything else is the address of a Redis server.
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
        if text.starts_with('~') && path == Path::new(text) {
            return Err(format!("{text}: only the shell knows the home of others; give the whole path, or ./{text}"));
        }
        let is_path = text.starts_with(['/', '.', '~']) || (!text.contains("://") && Path::new(text).is_dir());
        if is_path {
            return match std::path::absolute(&path) {
                Ok(path) => Ok(MetaUrl::Embedded(path)),
                Err(error) => Err(format!("the working directory is not known ({error}); give {text} as an absolute path")),
            };
        }
        let url = RedisUrl::parse(text, &ProcessEnvironment);
        url.map(|url| MetaUrl::Redis(Box::new(url)))
            .map_err(|why| if text.contains("://") { why } else { format!("{why}; a directory is written ./{text}") })
    }

    /// What to say when this server cannot be reached: it may have been meant as a directory.
    pub(super) fn hint(&self) -> String {
        let text = self.to_string();
        match text.strip_prefix("redis://").filter(|name| !name.contains([':', '/', '@', ',', '?']) && !matches!(*name, "" | "localhost")) {
            Some(name) => format!("; a directory is written ./{name}"),
            None => String::new(),
        }
    }

    /// The directory of an embedded volume.
    pub fn dir(&self) -> Option<&Path> {
        match self {
            MetaUrl::Embedded(dir) => Some(dir),
            MetaUrl::Redis(_) => None,
        }
    }

    /// The address as others may see it; passwords have to come from the environment of whoever uses it.
    pub fn without_password(&self) -> String {
        match self {
            MetaUrl::Embedded(dir) => dir.display().to_string(),
            MetaUrl::Redis(url) => url.to_string().replacen(":****@", "@", 1),
        }
    }
}

impl fmt::Display for MetaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetaUrl::Embedded(dir) => write!(f, "{}", dir.display()),
            MetaUrl::Redis(url) => write!(f, "{url}"),
        }
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
        assert!(MetaUrl::parse("./x").expect("a path").dir().expect("embedded").is_absolute());
        assert!(MetaUrl::parse("src").expect("a path").dir().is_some(), "an existing directory needs no ./");
        for (text, shown, without) in [
            ("redis://:secret@h/1", "redis://:****@h/1", "redis://@h/1"),
            ("localhost", "redis://localhost", "redis://localhost"),
            ("u:secret@h:1/2", "redis://u:****@h:1/2", "redis://u@h:1/2"),
        ] {
            let url = MetaUrl::parse(text).expect(text);
            assert_eq!((url.dir(), url.to_string().as_str(), url.without_password().as_str()), (None, shown, without));
        }
        for (text, what) in [("foo://x", "Invalid meta driver: foo"), ("", "empty"), ("sqlite3://a.db", "Invalid meta driver: sqlite3")] {
            let error = MetaUrl::parse(text).expect_err("refused");
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn who_means_a_directory_is_told_how_to_write_it() {
        for (text, hint) in
            [("my-vol", "; a directory is written ./my-vol"), ("localhost", ""), ("redis://", ""), ("host:6379", ""), ("/dir", "")]
        {
            assert_eq!(MetaUrl::parse(text).expect("an address").hint(), hint);
        }
        let error = MetaUrl::parse("data/vol").expect_err("no number of a database");
        assert!(error.ends_with("; a directory is written ./data/vol"), "{error}");
        assert!(MetaUrl::parse("~other/vol").expect_err("not ours to know").contains("./~other/vol"));
        assert!(!MetaUrl::parse("foo://x").expect_err("no driver").contains("directory"));
    }

    #[test]
    fn no_text_upsets_the_parser() {
        let texts = [
            "redis://user:p%40ss@[::1]:6379/5?read-timeout=1m30s&fsync-replicas=2&db=3",
            "rediss://m,s1:1,s2:26379/1?tls-ca-cert-file=/ca&insecure-skip-verify=1",
            "redis://:secret@h1:1,h2:2,h3:3/2",
            "unix://u:p@/run/redis.sock?db=4",
            "host",
            "/a/directory",
        ];
        crate::env::fuzz::decoder(&texts.map(|text| text.as_bytes().to_vec()), |bytes| {
            let text = String::from_utf8_lossy(bytes);
            match MetaUrl::parse(&text) {
                Ok(url) => drop(url.without_password()),
                Err(error) => assert!(!error.is_empty()),
            }
        });
    }
}
