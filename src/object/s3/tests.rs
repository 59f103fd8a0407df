//! `S3Store` against a server: what it asks, what it makes of answers, and of none.

#[path = "../../../tests/suite/s3_server.rs"]
mod server;

use super::*;
use crate::object::conformance;
use aws_sdk_s3::presigning::PresigningConfig;
use server::{ACCESS_KEY, Answer, Asked, Fault, SECRET_KEY, Server};
use std::time::Instant;

fn config(bucket: &str) -> S3Config {
    let mut config = S3Config::new(Flavor::S3, bucket);
    config.access_key = ACCESS_KEY.into();
    config.secret_key = SECRET_KEY.into();
    config
}

async fn open(config: S3Config) -> S3Store {
    S3Store::open(config).await.expect("opens")
}

/// A server with the bucket `data`.
async fn data() -> (tempfile::TempDir, Server, S3Store) {
    let temp = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(temp.path().join("data")).expect("made");
    let server = Server::start(temp.path());
    let store = open(config(&server.bucket("data"))).await;
    (temp, server, store)
}

#[tokio::test]
async fn conforms() {
    let (_temp, _server, store) = data().await;
    conformance::run(&store).await;
}

#[tokio::test]
async fn requests_are_plain_and_signed() {
    let (_temp, server, _) = data().await;
    let mut config = config(&server.bucket("data"));
    config.storage_class = "REDUCED_REDUNDANCY".into();
    config.tag = "team=a b".into();
    config.session_token = "token".into();
    let store = open(config).await;
    let body = Bytes::from(vec![7; 3 << 20]);
    store.put("v/chunks/0/0/1_0_3145728", body.clone()).await.expect("put");
    assert_eq!(store.get("v/chunks/0/0/1_0_3145728", Some(1..3)).await.as_deref(), Ok(&[7, 7][..]));
    store.head("v/chunks/0/0/1_0_3145728").await.expect("there");
    store.list("v/", "v/a", 5).await.expect("listed");
    store.delete("v/chunks/0/0/1_0_3145728").await.expect("deleted");
    let asked = server.take_asked();
    for asked in &asked {
        // The checksum of the bytes as they are stored, which the server compares, in place of a signature over them.
        let put = asked.method == "PUT";
        let checksums = asked.headers.keys().filter(|name| name.contains("checksum") || name.contains("trailer"));
        assert_eq!(checksums.collect::<Vec<_>>(), if put { vec!["x-amz-checksum-crc32c"] } else { vec![] }, "{asked:?}");
        assert!(!asked.headers.values().any(|value| value.contains("aws-chunked") || value.contains("STREAMING")), "{:?}", asked.headers);
        assert!(asked.headers["authorization"].starts_with("AWS4-HMAC-SHA256 Credential=test-access-key/"), "{:?}", asked.headers);
        assert_eq!(asked.headers["x-amz-security-token"], "token");
    }
    let [put, get, head, list, delete] = &asked[..] else { panic!("{asked:?}") };
    assert!(put.target.starts_with("/data/v/chunks/0/0/1_0_3145728?"), "{}", put.target);
    assert_eq!((put.method.as_str(), put.body.len(), put.headers["content-length"].as_str()), ("PUT", 3 << 20, "3145728"));
    assert_eq!(put.headers["x-amz-meta-crc32c"], crc32c::crc32c(&body).to_string());
    assert_eq!(put.headers["content-type"], "application/octet-stream");
    assert_eq!((put.headers["x-amz-storage-class"].as_str(), put.headers["x-amz-tagging"].as_str()), ("REDUCED_REDUNDANCY", "team=a%20b"));
    assert_eq!(put.headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
    assert_eq!(put.headers["x-amz-checksum-crc32c"], BASE64_STANDARD.encode(crc32c::crc32c(&body).to_be_bytes()));
    assert_eq!((get.headers["range"].as_str(), head.method.as_str(), delete.method.as_str()), ("bytes=1-2", "HEAD", "DELETE"));
    for (given, parameter) in [(true, "prefix=v%2F"), (true, "start-after=v%2Fa"), (true, "max-keys=5"), (false, "delimiter")] {
        assert_eq!(list.target.contains(parameter), given, "{}", list.target);
    }
}

#[tokio::test]
async fn the_checksum_of_the_format() {
    let server = Server::answering(|_| Answer::new(200, ""));
    let store = open(config(&server.bucket("data"))).await;
    store.put("k", Bytes::from_static(b"123456789")).await.expect("put");
    assert_eq!(server.take_asked()[0].headers["x-amz-meta-crc32c"], "3808858755");
    let store = open(config(&format!("{}?disable-checksum=true", server.bucket("data")))).await;
    store.put("k", Bytes::from_static(b"123456789")).await.expect("put");
    let asked = &server.take_asked()[0];
    assert!(!asked.headers.keys().any(|name| name.contains("crc32c")));
    assert_eq!(asked.headers["x-amz-content-sha256"].len(), 64, "the signature covers what has no checksum");
}

#[tokio::test]
async fn a_body_that_was_changed_on_the_way_is_not_taken() {
    let (_temp, server, store) = data().await;
    server.fail_next("PUT", Fault::FlipAsked);
    let body = Bytes::from(vec![7; 100_000]);
    let error = store.put("k", body.clone()).await.expect_err("changed");
    assert!(matches!(&error, ObjectError::Retry(_)), "{error}");
    // Servers differ in what is left of it; it is nothing that is named, and the next attempt replaces it.
    store.put("k", body.clone()).await.expect("put");
    assert_eq!(store.get("k", None).await, Ok(body));
}

#[tokio::test]
async fn a_server_that_wants_signed_bodies_gets_them() {
    for refusal in [Answer::error(501, "NotImplemented"), Answer::error(400, "InvalidRequest"), Answer::error(403, "AccessDenied")] {
        let server = Server::answering(move |asked| {
            let unsigned = asked.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD";
            if asked.method == "PUT" && unsigned { refusal.clone() } else { Answer::new(200, "") }
        });
        let store = open(config(&server.bucket("data"))).await;
        for _ in 0..2 {
            store.put("k", Bytes::from_static(b"123456789")).await.expect("put");
        }
        let asked = server.take_asked();
        assert_eq!(asked.len(), 3, "it is found out once");
        assert!(asked[1..].iter().all(|asked| !asked.headers.contains_key("x-amz-checksum-crc32c")));
    }
    // Who may not write may not write.
    let server = Server::answering(|_| Answer::error(403, "AccessDenied"));
    let store = open(config(&server.bucket("data"))).await;
    for _ in 0..2 {
        assert!(matches!(store.put("k", Bytes::from_static(b"x")).await, Err(ObjectError::Denied(_))));
        assert_eq!(server.take_asked().len(), 2);
    }
}

#[tokio::test]
async fn buckets_in_hosts() {
    for (url, path_style, start) in [
        (Some("http://h.example:9000"), false, "http://data.h.example:9000/a/k?"),
        (Some("http://h.example:9000"), true, "http://h.example:9000/data/a/k?"),
        (None, false, "https://data.s3.eu-west-1.amazonaws.com/a/k?"),
    ] {
        let endpoint = Endpoint {
            bucket: "data".into(),
            url: url.map(str::to_owned),
            region: Some("eu-west-1".into()),
            path_style,
            tls: url.is_none(),
            checksum: true,
        };
        let store = S3Store::at(endpoint, config("")).await.expect("opens");
        let lifetime = PresigningConfig::expires_in(Duration::from_secs(60)).expect("a minute");
        let request = store.client.get_object().bucket(&store.bucket).key("a/k").presigned(lifetime).await.expect("signed");
        assert!(request.uri().starts_with(start), "{}", request.uri());
    }
}

#[tokio::test]
async fn requests_without_keys() {
    let server = Server::answering(|_| Answer::new(200, "x"));
    let mut config = S3Config::new(Flavor::S3, &server.bucket("data"));
    config.access_key = ANONYMOUS.into();
    let store = open(config).await;
    store.get("k", None).await.expect("got");
    store.put("k", Bytes::from_static(b"x")).await.expect("put");
    for asked in server.take_asked() {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
    }
}

#[tokio::test]
async fn keys_of_all_kinds() {
    let (_temp, _server, store) = data().await;
    for key in ["v/a b+c", "v/ü/日本", "v/%41&=?#", "v/(it's)!*~$,;:@"] {
        let body = Bytes::copy_from_slice(key.as_bytes());
        store.put(key, body.clone()).await.expect(key);
        assert_eq!(store.get(key, None).await, Ok(body), "{key}");
        assert_eq!(store.list(key, "", 9).await.expect(key).len(), 1, "{key}");
        store.delete(key).await.expect(key);
        assert_eq!(store.get(key, None).await, Err(ObjectError::Missing), "{key}");
    }
}

#[tokio::test]
async fn wrong_keys_and_missing_buckets_say_so() {
    let (_temp, server, store) = data().await;
    let mut wrong = config(&server.bucket("data"));
    wrong.secret_key = "wrong-secret".into();
    let wrong = open(wrong).await;
    for error in [
        wrong.put("k", Bytes::from_static(b"x")).await.expect_err("denied"),
        wrong.get("k", None).await.expect_err("denied"),
        wrong.head("k").await.expect_err("denied"),
        wrong.delete("k").await.expect_err("denied"),
        wrong.list("", "", 1).await.expect_err("denied"),
    ] {
        assert!(matches!(&error, ObjectError::Denied(why) if why.contains("access key")), "{error}");
        assert!(!error.to_string().contains("wrong-secret"));
    }
    let missing = open(config(&server.bucket("other"))).await;
    let error = missing.put("k", Bytes::from_static(b"x")).await.expect_err("no bucket");
    assert!(matches!(&error, ObjectError::Invalid(why) if why.contains("no bucket other")), "{error}");
    missing.create().await.expect("made");
    missing.put("k", Bytes::from_static(b"x")).await.expect("put");
    missing.create().await.expect("it is there");
    store.create().await.expect("it is there");
}

#[tokio::test]
async fn wrong_bytes_are_never_returned() {
    let (temp, server, store) = data().await;
    let body = Bytes::from(vec![5; 100_000]);
    store.put("k", body.clone()).await.expect("put");
    server.fail_next("GET", Fault::Flip);
    assert_eq!(store.get("k", None).await, Ok(body.clone()), "a byte changed on the way comes right the next time");
    server.fail_next("GET", Fault::Short);
    assert_eq!(store.get("k", None).await, Ok(body.clone()), "so do bytes that are missing");
    server.fail_next("GET", Fault::Cut);
    let error = store.get("k", None).await.expect_err("cut off");
    assert!(matches!(error, ObjectError::Retry(_)), "{error}");
    assert_eq!(store.get("k", Some(10..20)).await, Ok(body.slice(10..20)), "nor does the connection stay broken");
    // The object itself is damaged.
    let mut damaged = body.to_vec();
    damaged[50_000] ^= 0x10;
    std::fs::write(temp.path().join("data/k"), &damaged).expect("written");
    let error = store.get("k", None).await.expect_err("damaged");
    assert!(matches!(&error, ObjectError::Damaged(why) if why.contains("add up to")), "{error}");
    std::fs::write(temp.path().join("data/k"), &damaged[..60_000]).expect("written");
    assert!(matches!(store.get("k", None).await, Err(ObjectError::Damaged(_))), "a shorter object");
    let unchecked = open(config(&format!("{}?disable-checksum=true", server.bucket("data")))).await;
    assert_eq!(unchecked.get("k", None).await.map(|bytes| bytes.len()), Ok(60_000));
}

#[tokio::test]
async fn objects_of_other_clients_are_read() {
    let server = Server::answering(|asked| {
        let answer = Answer::new(200, "123456789");
        match asked.target.split('?').next() {
            Some("/data/negative") => answer.header("x-amz-meta-crc32c", "-486108541"),
            Some("/data/upper") => answer.header("X-Amz-Meta-Crc32c", "3808858755"),
            Some("/data/words") => answer.header("x-amz-meta-crc32c", "words"),
            _ => answer,
        }
    });
    let store = open(config(&server.bucket("data"))).await;
    for key in ["negative", "upper", "words", "none"] {
        assert_eq!(store.get(key, None).await.as_deref(), Ok(&b"123456789"[..]), "{key}");
    }
    // The server knows no ranges: it answers with all of the object.
    assert_eq!(store.get("none", Some(2..4)).await.as_deref(), Ok(&b"34"[..]));
    assert!(matches!(store.get("none", Some(9..12)).await, Err(ObjectError::Invalid(_))));
}

#[tokio::test]
async fn another_range_than_asked_for_is_refused() {
    let server = Server::answering(|asked| {
        let range = asked.target.trim_start_matches("/data/").split('?').next().unwrap_or_default().replace('_', "/");
        Answer::new(206, "abc").header("content-range", &format!("bytes {range}"))
    });
    let store = open(config(&server.bucket("data"))).await;
    for (answered, ok) in [("5-7_100", true), ("5-7_*", true), ("4-6_100", false), ("5-8_100", false), ("5-6_7", false), ("x", false)] {
        assert_eq!(store.get(answered, Some(5..8)).await.is_ok(), ok, "{answered}");
    }
    assert_eq!(store.get("5-7_8", Some(5..20)).await.as_deref(), Ok(&b"abc"[..]), "the object ends there");
    assert!(store.get("5-7_8", None).await.is_err(), "a part instead of the whole");
}

#[tokio::test]
async fn a_server_that_fails_may_be_asked_again() {
    let (_temp, server, store) = data().await;
    store.put("k", Bytes::from_static(b"x")).await.expect("put");
    server.take_asked();
    for answer in [Answer::error(503, "SlowDown"), Answer::error(500, "InternalError"), Answer::new(502, "<html>"), Answer::new(429, "")] {
        server.fail_next("GET", Fault::Answer(answer.clone()));
        let error = store.get("k", None).await.expect_err("failed");
        assert!(matches!(error, ObjectError::Retry(_)), "{answer:?}: {error}");
        assert_eq!(server.take_asked().len(), 1, "one request is one attempt");
        assert!(store.get("k", None).await.is_ok());
        server.take_asked();
    }
    server.fail_next("PUT", Fault::Answer(Answer::error(507, "XMinioStorageFull")));
    assert!(matches!(store.put("k", Bytes::from_static(b"y")).await, Err(ObjectError::Full(_))));
    let gone = server.bucket("data");
    drop(server);
    let store = open(config(&gone)).await;
    assert!(matches!(store.get("k", None).await, Err(ObjectError::Retry(_))), "nobody listens");
}

#[tokio::test]
async fn a_server_that_hangs_is_left_in_time() {
    let (_temp, server, _) = data().await;
    let mut config = config(&server.bucket("data"));
    config.request_time_max = Duration::from_millis(300);
    let store = open(config).await;
    for method in ["GET", "PUT", "HEAD", "DELETE"] {
        server.fail_next(method, Fault::Hang);
        let start = Instant::now();
        let result = match method {
            "GET" => store.get("k", None).await.map(|_| ()),
            "PUT" => store.put("k", Bytes::from_static(b"x")).await,
            "HEAD" => store.head("k").await.map(|_| ()),
            _ => store.delete("k").await,
        };
        assert!(matches!(&result, Err(ObjectError::Retry(why)) if why.contains("300ms")), "{method}: {result:?}");
        assert!(start.elapsed() < Duration::from_secs(10), "{method}");
    }
    store.put("k", Bytes::from_static(b"x")).await.expect("other connections work");
}

/// A page of a listing.
fn page(keys: &[String], rest: &str) -> Answer {
    let objects: String = keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    Answer::new(200, format!("<?xml version=\"1.0\"?><ListBucketResult>{objects}{rest}</ListBucketResult>"))
}

fn parameter(asked: &Asked, name: &str) -> Option<String> {
    let (_, query) = asked.target.split_once('?')?;
    let pair = query.split('&').find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))?;
    Some(pair.1.replace("%2F", "/"))
}

/// A server that lists `v/0000` … `v/2499`, a thousand a page; `skips`: it begins after `start-after`; `second`: it knows version 2.
fn listing(skips: bool, second: bool) -> Server {
    Server::answering(move |asked| {
        let keys: Vec<String> = (0..2500).map(|n| format!("v/{n:04}")).collect();
        let is_second = second && parameter(asked, "list-type").is_some();
        let after = if is_second {
            parameter(asked, "continuation-token").or_else(|| parameter(asked, "start-after").filter(|_| skips))
        } else {
            parameter(asked, "marker")
        };
        let rest: Vec<String> = keys.into_iter().filter(|key| after.as_ref().is_none_or(|after| key > after)).collect();
        let max = parameter(asked, "max-keys").and_then(|max| max.parse().ok()).unwrap_or(1000);
        let shown = &rest[..rest.len().min(max)];
        let more = match (rest.len() > shown.len(), is_second, shown.last()) {
            (true, true, Some(last)) => {
                format!("<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>")
            }
            (more, ..) => format!("<IsTruncated>{more}</IsTruncated>"),
        };
        page(shown, &more)
    })
}

#[tokio::test]
async fn listings_of_many_pages_on_all_servers() {
    for (skips, second) in [(true, true), (false, true), (false, false)] {
        let server = listing(skips, second);
        let store = open(config(&server.bucket("data"))).await;
        for (after, limit, first, count) in [
            ("", 5000, 0, 2500),
            ("v/0999", 5000, 1000, 1500),
            ("v/1999", 3, 2000, 3),
            ("v/2499", 9, 0, 0),
            ("", 1001, 0, 1001),
            ("", 0, 0, 0),
        ] {
            let found: Vec<String> = store.list("v/", after, limit).await.expect("listed").into_iter().map(|meta| meta.key).collect();
            let expected: Vec<String> = (first..first + count).map(|n| format!("v/{n:04}")).collect();
            assert_eq!(found, expected, "{skips} {second} {after:?} {limit}");
        }
    }
}

#[tokio::test]
async fn a_server_that_refuses_version_2_is_asked_by_version_1() {
    let server = Server::answering(|asked| match parameter(asked, "list-type") {
        Some(_) => Answer::error(501, "NotImplemented"),
        None => page(&["v/a".into()], "<IsTruncated>false</IsTruncated>"),
    });
    let store = open(config(&server.bucket("data"))).await;
    assert_eq!(store.list("v/", "", 9).await.expect("listed").len(), 1);
    server.take_asked();
    assert_eq!(store.list("v/", "", 9).await.expect("listed").len(), 1);
    assert_eq!(server.take_asked().len(), 1, "it is remembered");
    let server = Server::answering(|_| page(&["v/b".into(), "v/a".into()], ""));
    let store = open(config(&server.bucket("data"))).await;
    let error = store.list("v/", "", 9).await.expect_err("out of order");
    assert!(error.to_string().contains("not in order"), "{error}");
}

#[tokio::test]
async fn the_region_of_a_name_is_asked_for() {
    let server = Server::answering(|_| {
        Answer::new(
            200,
            "<?xml version=\"1.0\"?><LocationConstraint xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">eu-west-1</LocationConstraint>",
        )
    });
    let endpoint = Endpoint {
        bucket: "data".into(),
        url: Some(format!("http://{}", server.addr())),
        region: None,
        path_style: true,
        tls: false,
        checksum: true,
    };
    let store = S3Store::at(endpoint.clone(), config("data")).await.expect("opens");
    assert_eq!(store.region, "eu-west-1");
    let server = Server::answering(|_| Answer::error(403, "AccessDenied"));
    let endpoint = Endpoint { url: Some(format!("http://{}", server.addr())), ..endpoint };
    let error = S3Store::at(endpoint, config("data")).await.err().expect("refused");
    assert!(error.to_string().contains("region"), "{error}");
}

#[tokio::test]
async fn a_bucket_elsewhere_names_its_region() {
    let server = Server::answering(|_| Answer::error(301, "PermanentRedirect").header("x-amz-bucket-region", "eu-west-1"));
    let store = open(config(&server.bucket("data"))).await;
    let error = store.get("k", None).await.expect_err("elsewhere");
    assert!(matches!(&error, ObjectError::Denied(why) if why.contains("eu-west-1")), "{error}");
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("v/ä &<{n}>")).collect()
}

#[tokio::test]
async fn many_objects_are_deleted_by_few_requests() {
    let (_temp, server, store) = data().await;
    let keys = names(1200);
    for key in keys.iter().step_by(7) {
        store.put(key, Bytes::from_static(b"x")).await.expect("put");
    }
    server.take_asked();
    assert_eq!(store.deletes_at_once(), 1000);
    assert_eq!(store.delete_all(&keys).await, vec![Ok(()); keys.len()]);
    let asked = server.take_asked();
    assert!(asked.len() == 2 && asked.iter().all(|asked| asked.method == "POST"), "{} requests", asked.len());
    // The protocol wants a checksum here, unlike elsewhere.
    assert!(asked[0].headers.contains_key("x-amz-checksum-crc32"), "{:?}", asked[0].headers);
    assert!(!asked[0].headers.values().any(|value| value.contains("aws-chunked") || value.contains("STREAMING")), "{:?}", asked[0].headers);
    assert_eq!(store.list("", "", 9).await, Ok(Vec::new()));
    assert_eq!(store.delete_all(&keys[..1]).await, [Ok(())]);
    assert_eq!(server.take_asked().last().map(|asked| asked.method.clone()).as_deref(), Some("DELETE"), "one is deleted as one");
}

#[tokio::test]
async fn a_server_that_deletes_single_objects_only_is_asked_for_these() {
    for refusal in [
        Answer::error(501, "NotImplemented"),
        Answer::error(400, "MalformedXML"),
        Answer::error(400, "MissingContentMD5"),
        Answer::error(405, "MethodNotAllowed"),
        Answer::error(403, "AccessDenied"),
        Answer::new(404, ""),
    ] {
        let (_temp, server, store) = data().await;
        let keys = names(20);
        for key in &keys {
            store.put(key, Bytes::from_static(b"x")).await.expect("put");
        }
        server.fail_next("POST", Fault::Answer(refusal.clone()));
        assert_eq!(store.delete_all(&keys).await, vec![Ok(()); 20], "{refusal:?}");
        assert_eq!((store.list("", "", 9).await, store.deletes_at_once()), (Ok(Vec::new()), 1), "{refusal:?}");
        server.take_asked();
        store.delete_all(&keys).await;
        assert!(server.take_asked().iter().all(|asked| asked.method == "DELETE"), "it is remembered");
    }
    // Busy, or not allowed at all, is another thing.
    let server = Server::answering(|_| Answer::error(503, "SlowDown"));
    let store = open(config(&server.bucket("data"))).await;
    assert!(store.delete_all(&names(3)).await.iter().all(|outcome| matches!(outcome, Err(ObjectError::Retry(_)))));
    assert_eq!((server.take_asked().len(), store.deletes_at_once()), (1, 1000));
    let server = Server::answering(|_| Answer::error(403, "AccessDenied"));
    let store = open(config(&server.bucket("data"))).await;
    assert!(store.delete_all(&names(3)).await.iter().all(|outcome| matches!(outcome, Err(ObjectError::Denied(_)))));
    assert_eq!(store.deletes_at_once(), 1000);
}

#[tokio::test]
async fn what_becomes_of_each_of_many_is_told() {
    let server = Server::answering(|asked| match asked.method.as_str() {
        "POST" => Answer::new(
            200,
            "<?xml version=\"1.0\"?><DeleteResult><Deleted><Key>a</Key></Deleted>\
             <Error><Key>b</Key><Code>InternalError</Code></Error><Error><Key>c</Key><Code>AccessDenied</Code></Error>\
             <Error><Key>d</Key><Code>NoSuchKey</Code></Error></DeleteResult>",
        ),
        _ => Answer::new(204, ""),
    });
    let store = open(config(&server.bucket("data"))).await;
    let keys: Vec<String> = ["a", "b", "c", "d", "e"].map(str::to_owned).into();
    let told = store.delete_all(&keys).await;
    assert!(matches!(&told[..], [Ok(()), Err(ObjectError::Retry(_)), Err(ObjectError::Denied(_)), Ok(()), Ok(())]), "{told:?}");
    let asked = server.take_asked();
    assert_eq!((asked.len(), asked[1].target.split('?').next()), (2, Some("/data/e")), "what was not named is asked for by itself");
}
