//! `RedisUrl`: every form of address and every option of metadata §1.1–1.5.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Port of a server that names none.
const PORT: u16 = 6379;
/// Port of a sentinel when none of them names one.
const SENTINEL_PORT: u16 = 26379;

/// Options of the Go client's library that tune its connection pool and caches. They are known words of existing command lines and have
/// no counterpart here: one connection is shared by everybody.
const WITHOUT_EFFECT: &[&str] = &[
    "protocol",
    "client_name",
    "max_retries",
    "pool_fifo",
    "pool_size",
    "pool_timeout",
    "min_idle_conns",
    "max_idle_conns",
    "max_active_conns",
    "conn_max_idle_time",
    "idle_timeout",
    "conn_max_lifetime",
    "max_conn_age",
    "write-timeout",
    "route-read",
    "client-cache",
    "client-cache-size",
    "client-cache-expire",
    "client-cache-preload",
];

/// Where the servers are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server, or one seed of a cluster: that is found out by asking.
    Single(Host),
    /// A Unix socket.
    Unix(PathBuf),
    /// Sentinels that know the master of this name.
    Sentinel {
        /// Name of the master.
        master: String,
        /// The sentinels.
        sentinels: Vec<Host>,
    },
    /// Seeds of a cluster.
    Cluster(Vec<Host>),
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Host {
    /// Name or address, without brackets.
    pub name: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') { write!(f, "[{}]:{}", self.name, self.port) } else { write!(f, "{}:{}", self.name, self.port) }
    }
}

/// TLS material.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// No check of the server's certificate.
    pub insecure: bool,
    /// Client certificate, PEM file.
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM file.
    pub key_file: Option<PathBuf>,
    /// Certificates that vouch for the server, PEM file; those of the system if `None`.
    pub ca_file: Option<PathBuf>,
    /// Name the server's certificate must bear, if it is not the host.
    pub server_name: Option<String>,
}

/// A parsed address. `Debug` and `Display` show no password.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    /// Where.
    pub topology: Topology,
    /// Number of the database.
    pub db: u32,
    /// ACL user, empty = the default user.
    pub user: String,
    /// Password, empty = none.
    pub password: String,
    /// Password of the sentinels, empty = none.
    pub sentinel_password: String,
    /// `None`: plain text.
    pub tls: Option<Tls>,
    /// Shortest pause before another attempt.
    pub retry_min: Duration,
    /// Longest pause.
    pub retry_max: Duration,
    /// A request that is not answered for this long is taken for lost.
    pub read_timeout: Duration,
    /// Time for one attempt to connect.
    pub dial_timeout: Duration,
    /// Replicas that must have what was committed before `sync` returns.
    pub fsync_replicas: u32,
    /// What the user should be told about the options.
    pub warnings: Vec<String>,
    shown: String,
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisUrl").field(&self.shown).finish()
    }
}

/// Where passwords come from when the address has none.
pub trait Environment {
    /// A variable, `None` if it is missing or empty.
    fn variable(&self, name: &str) -> Option<String>;
    /// Content of a file.
    fn file(&self, path: &str) -> Result<String, String>;
}

/// The environment of the process.
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variable(&self, name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }

    fn file(&self, path: &str) -> Result<String, String> {
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    }
}

/// Masks the password of an address that may not even be one: errors quote it.
pub fn masked(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    // A password may hold a slash that should have been escaped: everything up to the last @ is taken for credentials.
    let masked = match rest[..end].rfind('@') {
        None => rest.to_owned(),
        Some(at) => match rest[..at].split_once(':') {
            None => rest.to_owned(),
            Some((user, _)) => format!("{user}:****{}", &rest[at..]),
        },
    };
    if scheme.is_empty() { masked } else { format!("{scheme}://{masked}") }
}

impl RedisUrl {
    /// Reads an address; errors do not show passwords.
    pub fn parse(text: &str, environment: &dyn Environment) -> Result<RedisUrl, String> {
        let full = if text.contains("://") { text.to_owned() } else { format!("redis://{text}") };
        let fail = |why: &str| format!("{}: {why}", masked(&full));
        let (scheme, rest) = full.split_once("://").ok_or_else(|| fail("not an address"))?;
        let tls = match scheme {
            "redis" | "unix" => false,
            "rediss" => true,
            other => return Err(format!("Invalid meta driver: {other}")),
        };
        let rest = rest.split('#').next().unwrap_or("");
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (credentials, place) = match place.rfind('@') {
            Some(at) => (&place[..at], &place[at + 1..]),
            None => ("", place),
        };
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        let (user, password) = (unescape(user).map_err(|e| fail(&e))?, unescape(password).map_err(|e| fail(&e))?);
        let password = if password.is_empty() { password_from(environment).map_err(|e| fail(&e))? } else { password };
        let (topology, path_db) = if scheme == "unix" {
            if !place.starts_with('/') {
                return Err(fail("the path of a Unix socket begins with /"));
            }
            (Topology::Unix(unescape(place).map_err(|e| fail(&e))?.into()), 0)
        } else {
            let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
            (topology(hosts).map_err(|e| fail(&e))?, database(path.trim_end_matches('/')).map_err(|e| fail(&e))?)
        };
        let mut url = RedisUrl {
            topology,
            db: path_db,
            user,
            password,
            sentinel_password: environment.variable("SENTINEL_PASSWORD").unwrap_or_default(),
            tls: tls.then(Tls::default),
            retry_min: Duration::from_millis(20),
            // Shorter than the format's client waits: one connection is made for all requests, and they wait for it.
            retry_max: Duration::from_secs(1),
            read_timeout: Duration::from_secs(30),
            dial_timeout: Duration::from_secs(5),
            fsync_replicas: 0,
            warnings: Vec::new(),
            shown: masked(&full),
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).map_err(|e| fail(&e))?;
            url.option(name, &value).map_err(|e| fail(&e))?;
        }
        if url.retry_min > url.retry_max {
            url.retry_max = url.retry_min;
        }
        Ok(url)
    }

    fn option(&mut self, name: &str, value: &str) -> Result<(), String> {
        let path = || Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
        match name {
            "db" => self.db = database(value)?,
            "min-retry-backoff" | "min_retry_backoff" => self.duration(name, value, |url| &mut url.retry_min),
            "max-retry-backoff" | "max_retry_backoff" => self.duration(name, value, |url| &mut url.retry_max),
            "read-timeout" | "read_timeout" => self.duration(name, value, |url| &mut url.read_timeout),
            "dial-timeout" | "dial_timeout" => self.duration(name, value, |url| &mut url.dial_timeout),
            "fsync-replicas" | "fsync_replicas" => {
                self.fsync_replicas = value.parse().map_err(|_| format!("{name}={value}: a number of replicas is wanted"))?;
            }
            "insecure-skip-verify" | "skip_verify" => {
                let off = value.is_empty() || (name == "skip_verify" && value == "false");
                self.secure(name)?.insecure = !off;
            }
            "tls-cert-file" => self.secure(name)?.cert_file = path(),
            "tls-key-file" => self.secure(name)?.key_file = path(),
            "tls-ca-cert-file" => self.secure(name)?.ca_file = path(),
            "tls-server-name" => self.secure(name)?.server_name = Some(value.to_owned()).filter(|name| !name.is_empty()),
            name if WITHOUT_EFFECT.iter().any(|known| *known == name || known.replace('-', "_") == name) => {
                self.warnings.push(format!("the option {name} of the metadata address has no effect"));
            }
            name => return Err(format!("unknown option {name}")),
        }
        Ok(())
    }

    fn secure(&mut self, option: &str) -> Result<&mut Tls, String> {
        self.tls.as_mut().ok_or_else(|| format!("{option} needs the scheme rediss"))
    }

    /// As the format's client does: what cannot be read is said, and the default stays.
    fn duration(&mut self, name: &str, value: &str, field: fn(&mut RedisUrl) -> &mut Duration) {
        match go_duration(value).filter(|found| !found.is_zero()) {
            Some(found) => *field(self) = found,
            None => self.warnings.push(format!("{name}={value} is no duration such as 300ms or 1m30s; the default stays")),
        }
    }
}

fn password_from(environment: &dyn Environment) -> Result<String, String> {
    if let Some(password) = environment.variable("REDIS_PASSWORD").or_else(|| environment.variable("META_PASSWORD")) {
        return Ok(password);
    }
    match environment.variable("META_PASSWORD_FILE") {
        None => Ok(String::new()),
        Some(path) => {
            let text = environment.file(&path).map_err(|e| format!("cannot read the password from {path}: {e}"))?;
            Ok(text.trim().to_owned())
        }
    }
}

/// Metadata §1.4.
fn topology(hosts: &str) -> Result<Topology, String> {
    let Some(comma) = hosts.find(',') else {
        return Ok(Topology::Single(host(hosts, PORT)?));
    };
    if hosts.find(':').is_none_or(|colon| colon < comma) {
        return Ok(Topology::Cluster(hosts.split(',').map(|text| host(text, PORT)).collect::<Result<_, _>>()?));
    }
    let (master, rest) = (&hosts[..comma], &hosts[comma + 1..]);
    let last = rest.rsplit(',').next().unwrap_or(rest);
    let port = host(last, SENTINEL_PORT)?.port;
    let sentinels = rest.split(',').map(|text| host(text, port)).collect::<Result<_, _>>()?;
    Ok(Topology::Sentinel { master: master.to_owned(), sentinels })
}

fn host(text: &str, port: u16) -> Result<Host, String> {
    let (name, number) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, rest)) => (name, rest.strip_prefix(':')),
        None => match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        },
    };
    let port = match number {
        None | Some("") => port,
        Some(number) => number.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{number:?} is no port"))?,
    };
    Ok(Host { name: if name.is_empty() { "localhost".into() } else { name.to_owned() }, port })
}

fn database(text: &str) -> Result<u32, String> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| format!("invalid database number: {text:?}"))
}

fn unescape(text: &str) -> Result<String, String> {
    let bad = || "a % is not followed by two hexadecimal digits".to_owned();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = rest.get(..2).and_then(|two| std::str::from_utf8(two).ok()).filter(|two| two.bytes().all(|b| b.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or_else(bad)?, 16).map_err(|_| bad())?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| "the address is not UTF-8".into())
}

/// A duration as Go writes it: `300ms`, `1m30s`, `1.5h`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    if text.is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Env(&'static [(&'static str, &'static str)]);

    impl Environment for Env {
        fn variable(&self, name: &str) -> Option<String> {
            self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        }

        fn file(&self, path: &str) -> Result<String, String> {
            if path == "/secret" { Ok("from file\n".into()) } else { Err("no such file".into()) }
        }
    }

    fn parse(text: &str) -> Result<RedisUrl, String> {
        RedisUrl::parse(text, &Env(&[]))
    }

    fn h(name: &str, port: u16) -> Host {
        Host { name: name.into(), port }
    }

    #[test]
    fn places() {
        let single = |name: &str, port| Topology::Single(h(name, port));
        let table = [
            ("localhost", single("localhost", 6379), 0),
            ("h:7000/3", single("h", 7000), 3),
            ("redis://", single("localhost", 6379), 0),
            ("redis://h/1", single("h", 6379), 1),
            ("redis://h/1?db=2", single("h", 6379), 2),
            ("redis://[::1]:7/0", single("::1", 7), 0),
            ("redis://u:p@h:1/4", single("h", 1), 4),
            ("unix:///run/redis.sock?db=5", Topology::Unix("/run/redis.sock".into()), 5),
            ("unix://u:p@/run/r.sock", Topology::Unix("/run/r.sock".into()), 0),
            ("redis://a:1,b:2,c/6", Topology::Cluster(vec![h("a", 1), h("b", 2), h("c", 6379)]), 6),
            ("redis://a,b/1", Topology::Cluster(vec![h("a", 6379), h("b", 6379)]), 1),
            ("redis://:p@m,s1,s2:5/7", Topology::Sentinel { master: "m".into(), sentinels: vec![h("s1", 5), h("s2", 5)] }, 7),
            ("redis://m,s1:9,s2/7", Topology::Sentinel { master: "m".into(), sentinels: vec![h("s1", 9), h("s2", 26379)] }, 7),
        ];
        for (text, topology, db) in table {
            let url = parse(text).expect(text);
            assert_eq!((url.topology, url.db), (topology, db), "{text}");
        }
    }

    #[test]
    fn options() {
        let url =
            parse("rediss://h?read-timeout=1m30s&min_retry_backoff=5ms&tls-server-name=x&insecure-skip-verify=1&pool_size=9").expect("ok");
        let tls = url.tls.expect("tls");
        assert_eq!((url.read_timeout, url.retry_min), (Duration::from_secs(90), Duration::from_millis(5)));
        assert_eq!((tls.insecure, tls.server_name.as_deref(), tls.ca_file), (true, Some("x"), None));
        assert!(url.warnings.len() == 1 && url.warnings[0].contains("pool_size"), "{:?}", url.warnings);
        let url = parse("redis://h?read-timeout=soon").expect("as the format's client: a warning");
        assert_eq!((url.read_timeout, url.warnings.len()), (Duration::from_secs(30), 1));
        assert_eq!(parse("redis://h?max-retry-backoff=1ms").expect("ok").retry_max, Duration::from_millis(20));
        for (text, what) in [
            ("redis://h?colour=red", "unknown option colour"),
            ("redis://h/x", "database number"),
            ("redis://h/1/2", "database number"),
            ("redis://h:0", "port"),
            ("redis://h?tls-cert-file=a", "rediss"),
            ("redis://h/%zz", "database"),
            ("redis://u:%z@h", "hexadecimal"),
            ("unix://run/x", "begins with /"),
            ("http://h", "Invalid meta driver: http"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(what), "{text}: {error}");
        }
    }

    #[test]
    fn passwords_are_found_and_never_shown() {
        let url = parse("redis://us%40er:p%3Aw@h/1").expect("ok");
        assert_eq!((url.user.as_str(), url.password.as_str()), ("us@er", "p:w"));
        for (text, shown) in [
            ("redis://u:secret@h/1", "redis://u:****@h/1"),
            ("redis://:secret@h", "redis://:****@h"),
            ("redis://:sec/ret@h", "redis://:****@h"),
            ("u:secret@h:1/2", "redis://u:****@h:1/2"),
            ("redis://u@h?db=1", "redis://u@h?db=1"),
        ] {
            let shown_now = parse(text).map_or_else(|e| e, |url| format!("{url} {url:?}"));
            assert!(shown_now.contains(shown) && !shown_now.contains("secret"), "{shown_now}");
        }
        assert!(!parse("redis://u:secret@h/x").expect_err("no number").contains("secret"));
        for (env, want) in [
            (&[("REDIS_PASSWORD", "a"), ("META_PASSWORD", "b")][..], "a"),
            (&[("META_PASSWORD", "b"), ("META_PASSWORD_FILE", "/secret")], "b"),
            (&[("META_PASSWORD_FILE", "/secret")], "from file"),
        ] {
            let env: &'static [_] = Vec::leak(env.to_vec());
            assert_eq!(RedisUrl::parse("redis://h", &Env(env)).expect("ok").password, want);
            assert_eq!(RedisUrl::parse("redis://:x@h", &Env(env)).expect("ok").password, "x");
        }
        assert!(RedisUrl::parse("redis://h", &Env(&[("META_PASSWORD_FILE", "/no")])).expect_err("no file").contains("/no"));
        assert_eq!(RedisUrl::parse("redis://h", &Env(&[("SENTINEL_PASSWORD", "s")])).expect("ok").sentinel_password, "s");
    }

    #[test]
    fn durations() {
        for (text, millis) in
            [("300ms", Some(300)), ("1m30s", Some(90_000)), ("1.5h", Some(5_400_000)), ("0", Some(0)), ("5", None), ("", None), ("s", None)]
        {
            assert_eq!(go_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
