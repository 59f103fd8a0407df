//! Where a bucket is: the ways in which a bucket URL says it, read as other clients of the format do (data §2.4).

use crate::object::ObjectError;
use std::net::IpAddr;

/// The region of AWS when nothing names one, and of servers that have none.
const REGION_DEFAULT: &str = "us-east-1";
/// Part of every host of AWS, China's included.
const AWS: &str = ".amazonaws.com";

/// Whose rules a bucket URL follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// `--storage s3`: AWS, or any server that speaks its protocol.
    S3,
    /// `--storage minio`: the bucket is a path, HTTP unless it says otherwise, settings of its own in the environment.
    Minio,
}

/// What a bucket URL says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// Name of the bucket.
    pub bucket: String,
    /// `scheme://host[:port]` of the server; `None` is AWS, whose addresses the SDK knows.
    pub url: Option<String>,
    /// `None`: AWS is asked.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of requests, rather than in the name of the host.
    pub path_style: bool,
    /// Whether requests go through TLS.
    pub tls: bool,
    /// Whether objects carry and are checked against a checksum (data §2.3).
    pub checksum: bool,
}

impl Endpoint {
    /// Reads a bucket URL. `env` looks up variables of the environment.
    pub fn parse(flavor: Flavor, text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Endpoint, ObjectError> {
        let parts = Parts::split(flavor, text).map_err(|why| ObjectError::Invalid(format!("the bucket {}: {why}", without_keys(text))))?;
        parts
            .refuse_what_we_cannot()
            .and_then(|()| match flavor {
                Flavor::S3 => parts.s3(env),
                Flavor::Minio => parts.minio(env),
            })
            .and_then(|endpoint| check_bucket(&endpoint.bucket).map(|()| endpoint))
            .map_err(|why| ObjectError::Invalid(format!("the bucket {}: {why}", without_keys(text))))
    }
}

/// What a bucket URL has behind the bucket, which other clients leave out, too.
pub(super) fn unused_path(flavor: Flavor, text: &str) -> Option<&str> {
    let path = Parts::split(flavor, text).ok()?.path;
    let path = if flavor == Flavor::Minio { path.strip_prefix("minio/").unwrap_or(path) } else { path };
    path.split_once('/').map(|(_, rest)| rest).filter(|rest| !rest.is_empty())
}

/// A bucket URL in pieces.
struct Parts<'a> {
    tls: bool,
    host: &'a str,
    /// Without slashes around it.
    path: &'a str,
    query: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    fn split(flavor: Flavor, text: &'a str) -> Result<Parts<'a>, String> {
        let (location, query) = text.split_once('?').unwrap_or((text, ""));
        let (scheme, rest) = match location.split_once("://") {
            Some(parts) => parts,
            None if flavor == Flavor::Minio || (text.contains('.') && !text.ends_with(AWS)) => ("http", location),
            None => ("https", location),
        };
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            other => return Err(format!("{other}:// is no way to reach it; use http:// or https://")),
        };
        let rest = rest.trim_matches('/');
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.contains('@') {
            return Err("keys do not belong into the URL; use --access-key and --secret-key".into());
        }
        if host.is_empty() {
            return Err("it names no host".into());
        }
        let query =
            query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).filter(|(_, value)| !value.is_empty()).collect();
        Ok(Parts { tls, host, path, query })
    }

    fn option(&self, name: &str) -> Option<&'a str> {
        self.query.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// Connecting less safely than asked, or not as asked, is worse than not connecting.
    fn refuse_what_we_cannot(&self) -> Result<(), String> {
        match self.option("tls-insecure-skip-verify") {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => {}
            Some(_) => {
                return Err("tls-insecure-skip-verify is not supported; name the certificate of the server in SSL_CERT_FILE instead".into());
            }
        }
        for name in ["ca-certs", "ssl-cert", "ssl-key"] {
            if self.option(name).is_some() {
                return Err(format!(
                    "{name} is not supported; certificates of servers are taken from the system and SSL_CERT_FILE, clients have none"
                ));
            }
        }
        Ok(())
    }

    fn url(&self, host: &str) -> String {
        format!("{}://{host}", if self.tls { "https" } else { "http" })
    }

    fn endpoint(&self, bucket: &str, url: Option<String>, region: Option<String>, path_style: bool) -> Endpoint {
        let checksum = !self.option("disable-checksum").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        Endpoint { bucket: bucket.into(), url, region, path_style, tls: self.tls, checksum }
    }

    fn s3(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Endpoint, String> {
        let default_region = || Some(env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION")).unwrap_or_else(|| REGION_DEFAULT.into()));
        if self.host.contains(AWS) {
            return self.aws();
        }
        if !self.path.is_empty() {
            let bucket = self.path.split('/').next().unwrap_or_default();
            return Ok(self.endpoint(bucket, Some(self.url(self.host)), default_region(), path_style(env)));
        }
        let name = self.host.rsplit_once(':').map_or(self.host, |(name, _)| name);
        if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
            return Err("it names no bucket; add it as a path".into());
        }
        match self.host.split_once('.') {
            // A bucket of AWS by its name alone.
            None => Ok(self.endpoint(self.host, None, None, false)),
            Some((bucket, host)) => {
                let region = named_region(host).or_else(default_region);
                Ok(self.endpoint(bucket, Some(self.url(host)), region, path_style(env)))
            }
        }
    }

    fn aws(&self) -> Result<Endpoint, String> {
        let (bucket, host) = if self.path.is_empty() {
            // The bucket may contain dots: it ends where `s3` begins.
            match self.host.split_once(".vpce-") {
                Some((bucket, _)) => (bucket, &self.host[bucket.len() + 1..]),
                None => match self.host.find(".s3") {
                    Some(at) => (&self.host[..at], &self.host[at + 1..]),
                    None => return Err("it names no bucket; write https://BUCKET.s3.REGION.amazonaws.com".into()),
                },
            }
        } else {
            (self.path.split('/').next().unwrap_or_default(), self.host)
        };
        if let Some((_, region)) = host.split_once(".vpce.").and_then(|(head, _)| head.rsplit_once('.')) {
            return Ok(self.endpoint(bucket, Some(self.url(host)), Some(region.into()), true));
        }
        let region = aws_region(host)?;
        // Only an address of our own keeps the SDK from TLS.
        let suffix = if host.contains(".amazonaws.com.cn") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let url = (!self.tls).then(|| format!("http://s3.{region}.{suffix}"));
        Ok(self.endpoint(bucket, url, Some(region), false))
    }

    fn minio(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Endpoint, String> {
        let region = self.option("region").map(str::to_owned).or_else(|| env("MINIO_REGION")).unwrap_or_else(|| REGION_DEFAULT.into());
        let path = self.path.strip_prefix("minio/").unwrap_or(self.path);
        let bucket = path.split('/').next().unwrap_or_default();
        Ok(self.endpoint(bucket, Some(self.url(self.host)), Some(region), path_style(env)))
    }
}

/// Servers other than AWS are asked by path, because few have a name in DNS for every bucket.
fn path_style(env: &dyn Fn(&str) -> Option<String>) -> bool {
    matches!(env("JFS_S3_VHOST_STYLE").as_deref(), None | Some("" | "0" | "false"))
}

/// The region in a host of AWS: `s3.REGION.…`, `s3-REGION.…`, `s3.dualstack.REGION.…`, or the first one.
fn aws_region(host: &str) -> Result<String, String> {
    let rest = host.strip_prefix("s3-").or_else(|| host.strip_prefix("s3.")).unwrap_or(host);
    let rest = rest.strip_prefix("dualstack.").unwrap_or(rest);
    if rest.starts_with("amazonaws.com") {
        return Ok(REGION_DEFAULT.into());
    }
    match rest.split('.').next().unwrap_or_default() {
        "external-1" => Ok(REGION_DEFAULT.into()),
        region if region.contains('-') && region.ends_with(|c: char| c.is_ascii_digit()) => Ok(region.into()),
        other => Err(format!("{other:?} is no region of AWS; write s3.REGION.amazonaws.com")),
    }
}

/// The region in a host of providers that have one there: `s3.REGION.….cloud.ovh.net`, `….compat.objectstorage.REGION.oraclecloud.com`.
fn named_region(host: &str) -> Option<String> {
    if let Some(rest) = host.strip_suffix(".cloud.ovh.net").and_then(|rest| rest.strip_prefix("s3.")) {
        return rest.split('.').next().map(str::to_owned);
    }
    let (_, region) = host.strip_suffix(".oraclecloud.com")?.split_once(".compat.objectstorage.")?;
    Some(region.into())
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    if bucket.is_empty() {
        return Err("it names no bucket; add it as a path".into());
    }
    if !bucket.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c)) {
        return Err(format!("{bucket:?} is not a name a bucket can have"));
    }
    Ok(())
}

/// The URL for messages: whatever stands before an `@` may be a secret.
fn without_keys(text: &str) -> String {
    let location = text.split('?').next().unwrap_or_default();
    match (location.split_once("://"), location.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        (None, Some((_, rest))) => format!("…@{rest}"),
        (_, None) => location.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// bucket, URL of the server, region, path style.
    type Expected = (&'static str, Option<&'static str>, Option<&'static str>, bool);

    fn parse(flavor: Flavor, text: &str, env: &[(&str, &str)]) -> Result<Endpoint, ObjectError> {
        Endpoint::parse(flavor, text, &|name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn buckets_of_s3() {
        let east = Some("us-east-1");
        let table: [(&str, Expected); 20] = [
            ("http://127.0.0.1:9000/data", ("data", Some("http://127.0.0.1:9000"), east, true)),
            ("127.0.0.1:9000/data/", ("data", Some("http://127.0.0.1:9000"), east, true)),
            ("https://minio.example.com/data/ignored", ("data", Some("https://minio.example.com"), east, true)),
            ("localhost:9000/data", ("data", Some("https://localhost:9000"), east, true)),
            ("http://[::1]:9000/data", ("data", Some("http://[::1]:9000"), east, true)),
            ("https://data.minio.example.com", ("data", Some("https://minio.example.com"), east, true)),
            ("data.minio.example.com:9000", ("data", Some("http://minio.example.com:9000"), east, true)),
            ("https://acct.r2.cloudflarestorage.com/data", ("data", Some("https://acct.r2.cloudflarestorage.com"), east, true)),
            ("data.s3.eu-west-1.amazonaws.com", ("data", None, Some("eu-west-1"), false)),
            ("https://my.data.s3-eu-west-1.amazonaws.com/", ("my.data", None, Some("eu-west-1"), false)),
            ("https://data.s3.dualstack.eu-west-1.amazonaws.com", ("data", None, Some("eu-west-1"), false)),
            ("https://data.s3.amazonaws.com", ("data", None, east, false)),
            ("https://s3.amazonaws.com/data", ("data", None, east, false)),
            ("https://s3-external-1.amazonaws.com/data", ("data", None, east, false)),
            ("https://s3.cn-north-1.amazonaws.com.cn/data", ("data", None, Some("cn-north-1"), false)),
            ("http://s3.us-west-2.amazonaws.com/data", ("data", Some("http://s3.us-west-2.amazonaws.com"), Some("us-west-2"), false)),
            (
                "https://data.vpce-0a1b-2c.s3.us-west-2.vpce.amazonaws.com",
                ("data", Some("https://vpce-0a1b-2c.s3.us-west-2.vpce.amazonaws.com"), Some("us-west-2"), true),
            ),
            ("data", ("data", None, None, false)),
            ("https://data.s3.gra.cloud.ovh.net", ("data", Some("https://s3.gra.cloud.ovh.net"), Some("gra"), true)),
            (
                "https://data.ns.compat.objectstorage.uk-london-1.oraclecloud.com",
                ("data", Some("https://ns.compat.objectstorage.uk-london-1.oraclecloud.com"), Some("uk-london-1"), true),
            ),
        ];
        for (text, expected) in table {
            let found = parse(Flavor::S3, text, &[]).expect(text);
            assert_eq!((found.bucket.as_str(), found.url.as_deref(), found.region.as_deref(), found.path_style), expected, "{text}");
            assert!(found.checksum);
        }
    }

    #[test]
    fn what_a_url_has_behind_the_bucket_is_told() {
        for (flavor, text, unused) in [
            (Flavor::S3, "http://127.0.0.1:9000/data/wrong/place/", Some("wrong/place")),
            (Flavor::S3, "http://127.0.0.1:9000/data/", None),
            (Flavor::S3, "data", None),
            (Flavor::Minio, "h:9000/minio/data", None),
            (Flavor::Minio, "h:9000/minio/data/below?region=x", Some("below")),
        ] {
            assert_eq!(unused_path(flavor, text), unused, "{text}");
        }
    }

    #[test]
    fn the_environment_names_regions_and_styles() {
        let text = "http://h.example/data?disable-checksum=True&disable-100-continue=true";
        let found = parse(Flavor::S3, text, &[("AWS_DEFAULT_REGION", "b"), ("JFS_S3_VHOST_STYLE", "1")]).expect(text);
        assert_eq!((found.region.as_deref(), found.path_style, found.checksum), (Some("b"), false, false));
        let found = parse(Flavor::S3, text, &[("AWS_DEFAULT_REGION", "b"), ("AWS_REGION", "a"), ("JFS_S3_VHOST_STYLE", "0")]).expect(text);
        assert_eq!((found.region.as_deref(), found.path_style), (Some("a"), true));
        for (text, env, region) in [
            ("h:9000/data", &[][..], "us-east-1"),
            ("h:9000/minio/data/", &[("MINIO_REGION", "home"), ("AWS_REGION", "a")][..], "home"),
            ("http://h:9000/data?region=here", &[("MINIO_REGION", "home")][..], "here"),
        ] {
            let found = parse(Flavor::Minio, text, env).expect(text);
            assert_eq!((found.bucket.as_str(), found.url.as_deref()), ("data", Some("http://h:9000")), "{text}");
            assert_eq!(found.region.as_deref(), Some(region), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_why_and_tells_no_secret() {
        for (flavor, text, why) in [
            (Flavor::S3, "", "no host"),
            (Flavor::S3, "ftp://h/data", "ftp://"),
            (Flavor::S3, "http://127.0.0.1:9000", "no bucket"),
            (Flavor::S3, "http://[::1]:9000", "no bucket"),
            (Flavor::S3, "localhost:9000", "not a name"),
            (Flavor::S3, "http://h.example/da%d", "not a name"),
            (Flavor::S3, "http://ak:hush@h.example/data", "--access-key"),
            (Flavor::S3, "https://h.example/data?tls-insecure-skip-verify=true", "tls-insecure-skip-verify"),
            (Flavor::S3, "https://h.example/data?ca-certs=/a&ssl-cert=/b&ssl-key=/c", "ca-certs"),
            (Flavor::S3, "https://data.s3-fips.us-west-2.amazonaws.com", "no region"),
            (Flavor::S3, "https://data.amazonaws.com", "no bucket"),
            (Flavor::Minio, "http://h:9000", "no bucket"),
            (Flavor::Minio, "http://h:9000/", "no bucket"),
        ] {
            let error = parse(flavor, text, &[]).expect_err(text).to_string();
            assert!(error.contains(why) && !error.contains("hush"), "{text}: {error}");
        }
        assert!(parse(Flavor::S3, "https://h.example/data?tls-insecure-skip-verify=false", &[]).is_ok());
    }

    #[test]
    fn no_text_upsets_the_parser() {
        let texts = [
            "https://data.s3.dualstack.eu-west-1.amazonaws.com/",
            "https://data.vpce-0a1b-2c.s3.us-west-2.vpce.amazonaws.com",
            "http://[::1]:9000/data?disable-checksum=true&region=x",
            "https://data.ns.compat.objectstorage.uk-london-1.oraclecloud.com",
            "https://data.s3.gra.cloud.ovh.net",
            "http://ak:sk@h.example:9000/minio/data?ca-certs=/a",
        ];
        crate::env::fuzz::decoder(&texts.map(|text| text.as_bytes().to_vec()), |bytes| {
            let text = String::from_utf8_lossy(bytes);
            for flavor in [Flavor::S3, Flavor::Minio] {
                if let Ok(endpoint) = parse(flavor, &text, &[]) {
                    assert!(check_bucket(&endpoint.bucket).is_ok());
                }
            }
        });
    }
}
