//! Storing a file in parts: what does not fit into one request, or into memory.

use crate::object::s3::S3Store;
use crate::object::s3::error::classify;
use crate::object::{ObjectError, read_part};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use std::fs::File;
use tracing::warn;

/// Bytes of a part, the last one excepted: in memory one at a time, stored within the time of one request by a line of 2 Mbit/s. A file
/// may have 10,000 parts, so 160 GiB.
const PART_BYTES: u64 = 16 << 20;

impl S3Store {
    /// See `ObjectStore::put_file`.
    pub(super) async fn put_parts(&self, key: &str, file: &File) -> Result<(), ObjectError> {
        let bytes = file.metadata().map_err(|e| ObjectError::Invalid(format!("the file of {key} cannot be read: {e}")))?.len();
        if bytes <= PART_BYTES {
            return self.within(self.put_once(key, read_part(file, 0..bytes).await?)).await;
        }
        let begin = self.client.create_multipart_upload().bucket(&self.bucket).key(key).content_type(super::content_type(key));
        let begin = begin.set_storage_class(self.storage_class.clone()).set_tagging(self.tagging.clone());
        let begun = self.within(async { begin.send().await.map_err(|e| classify(e, &self.bucket)) }).await?;
        let upload = begun.upload_id.ok_or_else(|| ObjectError::Invalid("the server gave no name to an upload in parts".into()))?;
        let stored = self.store_parts(key, file, bytes, &upload).await;
        if stored.is_err() {
            // Parts that stay cost, and no listing of objects shows them.
            let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(&upload);
            if let Err(error) = self.within(async { abort.send().await.map_err(|e| classify(e, &self.bucket)) }).await {
                warn!(key, bucket = self.bucket, "parts of an upload that failed are left: {error}");
            }
        }
        stored
    }

    async fn store_parts(&self, key: &str, file: &File, bytes: u64, upload: &str) -> Result<(), ObjectError> {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < bytes {
            let number = i32::try_from(parts.len() + 1).map_err(|_| ObjectError::Invalid(format!("{key} has too many parts")))?;
            let body = read_part(file, at..bytes.min(at + PART_BYTES)).await?;
            at += body.len() as u64;
            let request = self.client.upload_part().bucket(&self.bucket).key(key).upload_id(upload).part_number(number);
            let length = i64::try_from(body.len()).expect("a part fits");
            let request = request.content_length(length).body(ByteStream::from(body)).customize();
            // A part has no checksum of its own.
            let request = if self.tls { request.disable_payload_signing() } else { request };
            let answer = self.within(async { request.send().await.map_err(|e| classify(e, &self.bucket)) }).await?;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(answer.e_tag).build());
        }
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let end = self.client.complete_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload).multipart_upload(all);
        self.within(async { end.send().await.map_err(|e| classify(e, &self.bucket)) }).await.map(|_| ())
    }
}
