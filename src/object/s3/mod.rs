//! Objects in a bucket of an S3 server: AWS, MinIO, R2, RustFS, Garage, Ceph and their like.
//!
//! Requests are plain: a body of known length in one piece, no checksum headers or trailers of the SDK, which many servers refuse. The one
//! that is sent to servers without TLS is sent in another way to those that refuse it.
//! Every object carries the CRC-32C of its bytes as metadata (data §2.3), and a get of a whole object compares.
//! One request is one attempt of bounded time; whoever asks decides whether to ask again.

mod delete;
mod endpoint;
mod error;
mod list;
mod multipart;
#[cfg(test)]
mod tests;

pub use endpoint::Flavor;

use crate::env::Buffer;
use crate::object::memory::cut;
use crate::object::{ObjectError, ObjectMeta, ObjectStore};
use crate::types::BoxFuture;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, ProvideCredentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    SharedCredentialsProvider, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{BucketLocationConstraint, CreateBucketConfiguration, StorageClass};
use base64::prelude::*;
use bytes::Bytes;
use endpoint::Endpoint;
use error::{chain, classify};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{info, warn};

/// A connection is there within this time or the attempt failed: ten round trips around the world.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// One attempt of any request, its body included, as other clients of the format allow (`--get-timeout`, `--put-timeout`): a block of
/// 4 MiB at 70 KiB/s.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// Name of the metadata that holds the checksum of an object, decimal.
const CHECKSUM: &str = "crc32c";
/// Bytes reserved on the word of a server; a larger object grows as it comes.
const RESERVED_BYTES_MAX: usize = 16 << 20;
/// Times a whole object is fetched before its bytes are called wrong: what a network damaged comes right at once.
const FETCHES_MAX: u32 = 2;
/// The access key that means requests without a signature.
const ANONYMOUS: &str = "anonymous";
/// The region in which a bucket is made without being told where.
const REGION_WITHOUT_NAME: &str = "us-east-1";
/// Where a bucket of AWS is looked for when nothing says its region: once for each of the two realms.
const REGIONS_ASKED: [&str; 2] = ["us-east-1", "cn-north-1"];

/// Which bucket, and how it is used. Holds secrets, so it cannot be printed.
#[derive(Clone)]
pub struct S3Config {
    /// Whose rules the URL follows.
    pub flavor: Flavor,
    /// Bucket URL (data §2.4).
    pub bucket: String,
    /// Empty: the environment, the shared profile, or the role of the container or instance. `anonymous`: unsigned requests.
    pub access_key: String,
    /// Belongs to the access key.
    pub secret_key: String,
    /// For temporary keys; else empty.
    pub session_token: String,
    /// Class of new objects; empty for the bucket's own.
    pub storage_class: String,
    /// Tag of new objects, `key=value`; empty for none.
    pub tag: String,
    /// Longest time of one attempt.
    pub request_time_max: Duration,
}

impl S3Config {
    /// A bucket with keys from the environment, and nothing special.
    pub fn new(flavor: Flavor, bucket: &str) -> S3Config {
        let none = String::new;
        S3Config {
            flavor,
            bucket: bucket.into(),
            access_key: none(),
            secret_key: none(),
            session_token: none(),
            storage_class: none(),
            tag: none(),
            request_time_max: REQUEST_TIME_MAX,
        }
    }
}

/// A bucket. Keys are used as they are.
pub struct S3Store {
    client: Client,
    bucket: String,
    region: String,
    checksum: bool,
    tls: bool,
    /// Whether the signature covers the bodies of objects; see `put_once`.
    sign_bodies: AtomicBool,
    storage_class: Option<StorageClass>,
    tagging: Option<String>,
    request_time_max: Duration,
    /// Found out by asking: this server lists by version 1 only.
    lists_v1: AtomicBool,
    /// Likewise: it removes one object by one request.
    deletes_singly: AtomicBool,
}

impl S3Store {
    /// Prepares requests; none is made unless keys or the region are to be found out.
    pub async fn open(config: S3Config) -> Result<S3Store, ObjectError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = Endpoint::parse(config.flavor, &config.bucket, &env)?;
        if let Some(unused) = endpoint::unused_path(config.flavor, &config.bucket) {
            warn!("/{unused} of the bucket's URL is not used: the objects are in bucket {}, below the name of the volume", endpoint.bucket);
        }
        let mut config = config;
        if config.flavor == Flavor::Minio && config.access_key.is_empty() {
            config.access_key = env("MINIO_ACCESS_KEY").unwrap_or_default();
            config.secret_key = env("MINIO_SECRET_KEY").unwrap_or_default();
        }
        S3Store::at(endpoint, config).await
    }

    async fn at(endpoint: Endpoint, config: S3Config) -> Result<S3Store, ObjectError> {
        let provider = provider(&endpoint, &config).await?;
        let region = match &endpoint.region {
            Some(region) => region.clone(),
            None => find_region(&endpoint, provider.clone()).await?,
        };
        Ok(S3Store {
            client: client(&endpoint, provider, &region),
            bucket: endpoint.bucket,
            region,
            checksum: endpoint.checksum,
            tls: endpoint.tls,
            sign_bodies: AtomicBool::new(!endpoint.tls && !endpoint.checksum),
            storage_class: Some(config.storage_class.as_str()).filter(|class| !class.is_empty()).map(StorageClass::from),
            tagging: Some(config.tag.as_str()).filter(|tag| !tag.is_empty()).map(encode_tag),
            request_time_max: config.request_time_max,
            lists_v1: AtomicBool::new(false),
            deletes_singly: AtomicBool::new(false),
        })
    }

    /// Runs one attempt in bounded time. What is given up is dropped, and its connection with it.
    async fn within<T>(&self, request: impl Future<Output = Result<T, ObjectError>>) -> Result<T, ObjectError> {
        let late = |_| ObjectError::Retry(format!("no answer in {:?}", self.request_time_max));
        tokio::time::timeout(self.request_time_max, request).await.map_err(late)?
    }

    /// One attempt, by which the server gets the body as it is here, or says so. Under TLS nothing changes on the way. Without it the server
    /// compares the body with its CRC-32C, which the object carries anyway: to cover it by the signature would cost more than all else that is
    /// done with it (`docs/adr/0011-bodies-are-not-signed.md`). A server that takes no such request gets signed bodies.
    async fn put_once(&self, key: &str, body: Bytes) -> Result<(), ObjectError> {
        if self.sign_bodies.load(Ordering::Relaxed) {
            return self.put_body(key, body, true).await;
        }
        match self.put_body(key, body.clone(), false).await {
            Err(why @ (ObjectError::Invalid(_) | ObjectError::Denied(_))) if !self.tls => {
                self.put_body(key, body, true).await.map_err(|_| why)?;
                info!("bucket {}: the server takes signed bodies only", self.bucket);
                self.sign_bodies.store(true, Ordering::Relaxed);
                Ok(())
            }
            outcome => outcome,
        }
    }

    async fn put_body(&self, key: &str, body: Bytes, signed: bool) -> Result<(), ObjectError> {
        let bytes = i64::try_from(body.len()).map_err(|_| ObjectError::Invalid("the object is too large".into()))?;
        let checksum = self.checksum.then(|| crc32c::crc32c(&body));
        let mut request = self.client.put_object().bucket(&self.bucket).key(key).content_length(bytes);
        request = request.content_type(content_type(key)).set_storage_class(self.storage_class.clone());
        request = request.set_tagging(self.tagging.clone()).body(ByteStream::from(body));
        if let Some(checksum) = checksum {
            request = request.metadata(CHECKSUM, checksum.to_string());
            if !self.tls && !signed {
                request = request.checksum_crc32_c(BASE64_STANDARD.encode(checksum.to_be_bytes()));
            }
        }
        let request = request.customize();
        let request = if signed { request } else { request.disable_payload_signing() };
        request.send().await.map_err(|e| classify(e, &self.bucket))?;
        Ok(())
    }

    async fn get_once(&self, key: &str, range: Option<&Range<u64>>) -> Result<Fetched, ObjectError> {
        let header = range.map(|range| format!("bytes={}-{}", range.start, range.end - 1));
        let request = self.client.get_object().bucket(&self.bucket).key(key).set_range(header);
        let mut answer = request.send().await.map_err(|e| classify(e, &self.bucket))?;
        let announced = answer.content_length.and_then(|bytes| usize::try_from(bytes).ok());
        let mut bytes = Buffer::with_room(announced.unwrap_or(0).min(RESERVED_BYTES_MAX));
        while let Some(part) = answer.body.next().await {
            bytes.extend_from_slice(&part.map_err(|e| ObjectError::Retry(format!("the answer was cut off: {}", chain(&e))))?);
        }
        if announced.is_some_and(|announced| announced != bytes.len()) {
            return Err(ObjectError::Retry(format!("the answer ended after {} bytes", bytes.len())));
        }
        let bytes = bytes.freeze();
        match (range, &answer.content_range) {
            (Some(range), Some(answered)) => {
                check_range(range, answered, bytes.len())?;
                Ok(Fetched { bytes, whole: false, checksum: None })
            }
            (_, None) => {
                let checksum = answer.metadata.as_ref().and_then(|metadata| metadata.get(CHECKSUM));
                Ok(Fetched { bytes, whole: true, checksum: checksum.cloned().filter(|_| self.checksum) })
            }
            (None, Some(answered)) => Err(ObjectError::Retry(format!("{answered} came instead of the whole object"))),
        }
    }

    async fn get_checked(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, ObjectError> {
        if range.as_ref().is_some_and(Range::is_empty) {
            // HTTP has no empty range; what is left of the question is whether the object is there.
            return self.head(key).await.map(|_| Bytes::new());
        }
        let mut fetches = 1;
        loop {
            let fetched = self.within(self.get_once(key, range.as_ref())).await?;
            match fetched.verify(key) {
                // Of a server that does not know ranges, the whole.
                Ok(bytes) if fetched.whole => return cut(&bytes, range),
                Ok(bytes) => return Ok(bytes),
                Err(why) if fetches == FETCHES_MAX => return Err(ObjectError::Damaged(why)),
                Err(why) => warn!(key, bucket = self.bucket, "{why}; fetching them again"),
            }
            fetches += 1;
        }
    }

    async fn head_once(&self, key: &str) -> Result<ObjectMeta, ObjectError> {
        let answer = self.client.head_object().bucket(&self.bucket).key(key).send().await.map_err(|e| classify(e, &self.bucket))?;
        let size = answer.content_length.and_then(|bytes| u64::try_from(bytes).ok());
        let size = size.ok_or_else(|| ObjectError::Invalid(format!("the server does not say how large {key} is")))?;
        Ok(ObjectMeta { key: key.into(), size, modified: answer.last_modified.map_or(0, |time| time.secs()) })
    }

    async fn delete_once(&self, key: &str) -> Result<(), ObjectError> {
        match self.client.delete_object().bucket(&self.bucket).key(key).send().await.map_err(|e| classify(e, &self.bucket)) {
            Ok(_) | Err(ObjectError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn create_once(&self) -> Result<(), ObjectError> {
        let mut request = self.client.create_bucket().bucket(&self.bucket);
        if self.region != REGION_WITHOUT_NAME {
            let place = BucketLocationConstraint::from(self.region.as_str());
            request = request.create_bucket_configuration(CreateBucketConfiguration::builder().location_constraint(place).build());
        }
        match request.send().await {
            Ok(_) => {
                info!("made the bucket {}", self.bucket);
                Ok(())
            }
            Err(e) if matches!(e.code(), Some("BucketAlreadyExists" | "BucketAlreadyOwnedByYou")) => Ok(()),
            Err(e) => Err(classify(e, &self.bucket)),
        }
    }
}

impl ObjectStore for S3Store {
    fn put<'a>(&'a self, key: &'a str, body: Bytes) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.within(self.put_once(key, body)))
    }

    fn get<'a>(&'a self, key: &'a str, range: Option<Range<u64>>) -> BoxFuture<'a, Result<Bytes, ObjectError>> {
        Box::pin(self.get_checked(key, range))
    }

    fn put_file<'a>(&'a self, key: &'a str, file: &'a File) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.put_parts(key, file))
    }

    fn head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<ObjectMeta, ObjectError>> {
        Box::pin(self.within(self.head_once(key)))
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), ObjectError>> {
        Box::pin(self.within(self.delete_once(key)))
    }

    fn deletes_at_once(&self) -> usize {
        if self.deletes_singly.load(Ordering::Relaxed) { 1 } else { delete::KEYS_MAX }
    }

    fn delete_all<'a>(&'a self, keys: &'a [String]) -> BoxFuture<'a, Vec<Result<(), ObjectError>>> {
        Box::pin(self.delete_many(keys))
    }

    fn list<'a>(&'a self, prefix: &'a str, after: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<ObjectMeta>, ObjectError>> {
        Box::pin(self.list_all(prefix, after, limit))
    }

    fn create(&self) -> BoxFuture<'_, Result<(), ObjectError>> {
        Box::pin(async move {
            // Whoever may use a bucket often may not make one.
            match self.list_all("", "", 1).await {
                Ok(_) => Ok(()),
                Err(_) => self.within(self.create_once()).await,
            }
        })
    }
}

/// As other clients of the format guess it from the name (data §2.4).
fn content_type(key: &str) -> &'static str {
    if key.ends_with(".gz") { "application/gzip" } else { "application/octet-stream" }
}

/// A body, and what it should add up to if it is a whole object.
struct Fetched {
    bytes: Bytes,
    whole: bool,
    checksum: Option<String>,
}

impl Fetched {
    /// The bytes, unless they are known to be wrong.
    fn verify(&self, key: &str) -> Result<Bytes, String> {
        let Some(text) = &self.checksum else { return Ok(self.bytes.clone()) };
        // Clients whose integers have 32 bits write the upper half of the values as negative ones.
        let Ok(expected) = text.parse::<i64>().map(|number| (number & 0xffff_ffff) as u32) else {
            warn!(key, "the checksum of the object is {text:?}, which is no number; its bytes are not checked");
            return Ok(self.bytes.clone());
        };
        let found = crc32c::crc32c(&self.bytes);
        if found == expected { Ok(self.bytes.clone()) } else { Err(format!("the bytes of {key} add up to {found} instead of {expected}")) }
    }
}

/// An answer must be the part that was asked for; the last byte may be missing if the object ends before.
fn check_range(asked: &Range<u64>, answered: &str, bytes: usize) -> Result<(), ObjectError> {
    let parse = || {
        let (span, size) = answered.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, size.parse::<u64>().ok()))
    };
    let fits = parse().is_some_and(|(first, last, size)| {
        let end = size.map_or(asked.end, |size| asked.end.min(size));
        first == asked.start && last.checked_add(1) == Some(end) && end.checked_sub(first) == Some(bytes as u64)
    });
    if fits { Ok(()) } else { Err(ObjectError::Retry(format!("{answered} came as an answer to bytes {}..{}", asked.start, asked.end))) }
}

fn client(endpoint: &Endpoint, provider: Option<SharedCredentialsProvider>, region: &str) -> Client {
    let mut builder = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .force_path_style(endpoint.path_style)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT_TIME_MAX).build())
        // An attempt as a whole is bounded; a slow one within its time is no error.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    builder.set_endpoint_url(endpoint.url.clone());
    match provider {
        Some(provider) => builder.set_credentials_provider(Some(provider)),
        None => builder.set_allow_no_auth(),
    };
    Client::from_conf(builder.build())
}

/// Who signs; `None`: nobody.
async fn provider(endpoint: &Endpoint, config: &S3Config) -> Result<Option<SharedCredentialsProvider>, ObjectError> {
    if config.access_key == ANONYMOUS {
        return Ok(None);
    }
    if !config.access_key.is_empty() {
        let token = Some(config.session_token.clone()).filter(|token| !token.is_empty());
        let keys = Credentials::new(config.access_key.clone(), config.secret_key.clone(), token, None, "setting");
        return Ok(Some(SharedCredentialsProvider::new(keys)));
    }
    let region = endpoint.region.clone().unwrap_or_else(|| REGIONS_ASKED[0].into());
    let found = DefaultCredentialsChain::builder().region(Region::new(region)).build().await;
    // Asked once now: at the first request it would look as if the server had failed.
    match tokio::time::timeout(config.request_time_max, found.provide_credentials()).await {
        Ok(Ok(_)) => Ok(Some(SharedCredentialsProvider::new(found))),
        Ok(Err(why)) => Err(ObjectError::Denied(format!(
            "no access key is given, and none found in the environment, the shared profile or the role of this host: {}",
            chain(&why)
        ))),
        Err(_) => Err(ObjectError::Retry(format!("the role of this host gave no access key in {:?}", config.request_time_max))),
    }
}

/// The region of a bucket that is known by its name alone.
async fn find_region(endpoint: &Endpoint, provider: Option<SharedCredentialsProvider>) -> Result<String, ObjectError> {
    let set = std::env::var("AWS_DEFAULT_REGION").ok().filter(|region| !region.is_empty());
    let asked = set.map_or_else(|| REGIONS_ASKED.map(str::to_owned).to_vec(), |region| vec![region]);
    let mut why = ObjectError::Invalid("no region was asked".into());
    for region in asked {
        let request = client(endpoint, provider.clone(), &region).get_bucket_location().bucket(&endpoint.bucket).send();
        match tokio::time::timeout(REQUEST_TIME_MAX, request).await {
            Ok(Ok(answer)) => {
                let place = answer.location_constraint.map(|place| place.as_str().to_owned()).filter(|place| !place.is_empty());
                return Ok(place.unwrap_or_else(|| REGION_WITHOUT_NAME.into()));
            }
            Ok(Err(e)) => why = classify(e, &endpoint.bucket),
            Err(_) => why = ObjectError::Retry(format!("no answer in {REQUEST_TIME_MAX:?}")),
        }
    }
    let text = format!("cannot find out the region of the bucket {}: {why}; name it in the bucket URL", endpoint.bucket);
    Err(if matches!(why, ObjectError::Retry(_)) { ObjectError::Retry(text) } else { ObjectError::Denied(text) })
}

/// A tag as the header wants it: both sides of `=` percent-encoded.
fn encode_tag(tag: &str) -> String {
    let encode = |text: &str| -> String {
        let plain = |c: &u8| c.is_ascii_alphanumeric() || b"-_.~".contains(c);
        text.bytes().map(|c| if plain(&c) { char::from(c).to_string() } else { format!("%{c:02X}") }).collect()
    };
    let (key, value) = tag.split_once('=').unwrap_or((tag, ""));
    format!("{}={}", encode(key), encode(value))
}
