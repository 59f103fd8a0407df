//! What the answer of an S3 server, or none, means for the caller. No secret gets into a message.

use crate::object::ObjectError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};

/// Codes of answers that are about who asks, whatever their status.
const DENIED: &[&str] = &[
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
];
/// Codes with a status of their own making that pass by themselves, or were caused by bytes lost on the way.
const PASSING: &[&str] = &[
    "BadDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
];

/// Sorts the error of a request by what the caller can do about it.
pub(super) fn classify<E>(error: SdkError<E, HttpResponse>, bucket: &str) -> ObjectError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match &error {
        SdkError::ServiceError(answer) => {
            let response = answer.raw();
            let header = |name: &str| response.headers().get(name).unwrap_or_default();
            let facts = Answer {
                status: response.status().as_u16(),
                code: answer.err().code().unwrap_or_default(),
                message: answer.err().message().unwrap_or_default(),
                region: header("x-amz-bucket-region"),
                request: header("x-amz-request-id"),
            };
            facts.classify(bucket)
        }
        SdkError::TimeoutError(_) => ObjectError::Retry("the server did not answer in time".into()),
        SdkError::DispatchFailure(failure) if failure.is_user() => ObjectError::Invalid(DisplayErrorContext(&error).to_string()),
        SdkError::DispatchFailure(_) => ObjectError::Retry(chain(&error)),
        // Not an answer of S3: cut off, or something between us and the server.
        SdkError::ResponseError(_) => ObjectError::Retry(chain(&error)),
        _ => ObjectError::Invalid(chain(&error)),
    }
}

/// The same of an error that an answer reports of one object of several.
pub(super) fn of_code(code: &str, message: &str, bucket: &str) -> ObjectError {
    // No status comes with it; what is not known better may succeed when it is asked for again.
    let status = if code == "NoSuchKey" { 404 } else { 500 };
    Answer { status, code, message, region: "", request: "" }.classify(bucket)
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        at = cause.source();
    }
    text
}

/// The answer of a server that did not do what it was asked.
struct Answer<'a> {
    status: u16,
    code: &'a str,
    message: &'a str,
    region: &'a str,
    request: &'a str,
}

impl Answer<'_> {
    fn classify(&self, bucket: &str) -> ObjectError {
        let text = self.text();
        match (self.status, self.code) {
            (_, "NoSuchBucket") => ObjectError::Invalid(format!("there is no bucket {bucket} ({text})")),
            (301 | 307, _) | (_, "PermanentRedirect" | "TemporaryRedirect") => {
                let region = if self.region.is_empty() { String::new() } else { format!(" {}", self.region) };
                ObjectError::Denied(format!("the bucket {bucket} is in another region{region}; name it in the bucket URL or AWS_REGION"))
            }
            (404, "NoSuchKey" | "NotFound" | "") => ObjectError::Missing,
            (416, _) => ObjectError::Invalid(text),
            (507, _) => ObjectError::Full(text),
            (_, code) if code.contains("Quota") || code.contains("StorageFull") => ObjectError::Full(text),
            (_, code) if PASSING.contains(&code) => ObjectError::Retry(text),
            (_, code) if DENIED.contains(&code) => ObjectError::Denied(format!("check the access key and its rights on {bucket}: {text}")),
            (401 | 403, _) => ObjectError::Denied(format!("check the access key and its rights on {bucket}: {text}")),
            // What a server does not implement it will not do the next time either.
            (501, _) => ObjectError::Invalid(text),
            (408 | 429 | 500.., _) => ObjectError::Retry(text),
            _ => ObjectError::Invalid(text),
        }
    }

    fn text(&self) -> String {
        let mut text = format!("HTTP {}", self.status);
        for (before, part) in [(" ", self.code), (", ", self.message), (", request ", self.request)] {
            if !part.is_empty() {
                text.push_str(before);
                text.push_str(part);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_mean_what_a_caller_can_do() {
        let kind = |status, code| {
            let answer = Answer { status, code, message: "m", region: "", request: "r" };
            match answer.classify("b") {
                ObjectError::Missing => "missing",
                ObjectError::Full(_) => "full",
                ObjectError::Denied(_) => "denied",
                ObjectError::Retry(_) => "retry",
                ObjectError::Invalid(_) => "invalid",
                ObjectError::Damaged(_) => "damaged",
            }
        };
        for (status, code, meaning) in [
            (404, "NoSuchKey", "missing"),
            (404, "", "missing"),
            (404, "NoSuchBucket", "invalid"),
            (404, "NoSuchUpload", "invalid"),
            (403, "", "denied"),
            (403, "SignatureDoesNotMatch", "denied"),
            (400, "ExpiredToken", "denied"),
            (400, "AuthorizationHeaderMalformed", "denied"),
            (301, "PermanentRedirect", "denied"),
            (400, "RequestTimeout", "retry"),
            (400, "XAmzContentSHA256Mismatch", "retry"),
            (409, "OperationAborted", "retry"),
            (429, "", "retry"),
            (500, "InternalError", "retry"),
            (502, "", "retry"),
            (503, "SlowDown", "retry"),
            (501, "NotImplemented", "invalid"),
            (507, "XMinioStorageFull", "full"),
            (403, "QuotaExceeded", "full"),
            (416, "InvalidRange", "invalid"),
            (400, "InvalidArgument", "invalid"),
        ] {
            assert_eq!(kind(status, code), meaning, "{status} {code}");
        }
    }
}
