//! An S3 server in this process: real buckets in a directory, or answers made up by the test. It records what it is asked, and fails as told.

use bytes::Bytes;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The only keys the server knows.
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names are in lower case.
    pub headers: HashMap<String, String>,
    pub body: Bytes,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Answer {
        Answer { status, headers: Vec::new(), body: body.into() }
    }

    /// The way S3 says what is wrong.
    pub fn error(status: u16, code: &str) -> Answer {
        Answer::new(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as the test wants it</Message></Error>"))
    }

    #[allow(dead_code)]
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
#[allow(dead_code)] // Not every program that includes this file needs all of them.
pub enum Fault {
    /// This is the answer.
    Answer(Answer),
    /// There is none; the connection stays open.
    Hang,
    /// The connection ends after half of the body.
    Cut,
    /// One bit of the body is another.
    Flip,
    /// The body ends early, and the length says so.
    Short,
    /// One bit of the request's body was another when it came.
    FlipAsked,
}

type Answers = Box<dyn Fn(&Asked) -> Answer + Send + Sync>;

enum Backend {
    Buckets(S3Service, PathBuf),
    Answers(Answers),
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    faults: VecDeque<(&'static str, Fault)>,
}

/// A server that ends with the value.
pub struct Server {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    _stop: oneshot::Sender<()>,
}

impl Server {
    /// Buckets are the directories in `root`.
    pub fn start(root: &Path) -> Server {
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).expect("a directory"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        Server::over(Backend::Buckets(builder.build(), root.into()))
    }

    /// Every answer is the test's.
    #[allow(dead_code)]
    pub fn answering(answers: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
        Server::over(Backend::Answers(Box::new(answers)))
    }

    fn over(backend: Backend) -> Server {
        let state = Arc::new(Mutex::new(State::default()));
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
                tell.send(listener.local_addr().expect("bound")).expect("the test waits");
                let backend = Arc::new(backend);
                let accept = async {
                    loop {
                        let (stream, _) = listener.accept().await.expect("accepts");
                        // Small answers must not wait for acknowledgements.
                        stream.set_nodelay(true).expect("a TCP socket");
                        tokio::spawn(serve(stream, Arc::clone(&backend), Arc::clone(&shared)));
                    }
                };
                tokio::select! {
                    () = accept => {}
                    _ = stopped => {}
                }
            });
        });
        Server { addr: told.recv().expect("the server starts"), state, _stop: stop }
    }

    #[allow(dead_code)]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// URL of a bucket, path style.
    pub fn bucket(&self, name: &str) -> String {
        format!("http://{}/{name}", self.addr)
    }

    /// The next request of this method goes wrong.
    #[allow(dead_code)]
    pub fn fail_next(&self, method: &'static str, fault: Fault) {
        self.state.lock().expect("not poisoned").faults.push_back((method, fault));
    }

    /// What was asked since the last call.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().expect("not poisoned").asked)
    }
}

/// One connection: requests one after the other, until one side ends it.
async fn serve(mut stream: TcpStream, backend: Arc<Backend>, state: Arc<Mutex<State>>) {
    let mut buffer = Vec::new();
    while let Some(mut asked) = read(&mut stream, &mut buffer).await {
        let fault = {
            let mut state = state.lock().expect("not poisoned");
            state.asked.push(asked.clone());
            let at = state.faults.iter().position(|(method, _)| *method == asked.method);
            at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
        };
        if matches!(fault, Some(Fault::FlipAsked)) {
            let mut body = asked.body.to_vec();
            *body.last_mut().expect("a body to damage") ^= 1;
            asked.body = body.into();
        }
        let mut answer = match (&fault, backend.as_ref()) {
            (Some(Fault::Hang), _) => return std::future::pending().await,
            (Some(Fault::Answer(answer)), _) => answer.clone(),
            (_, Backend::Answers(answers)) => answers(&asked),
            (_, Backend::Buckets(service, root)) => match missing(root, &asked) {
                Some(answer) => answer,
                None => call(service, &asked).await,
            },
        };
        match fault {
            Some(Fault::Flip) => {
                let mut body = answer.body.to_vec();
                *body.last_mut().expect("a body to damage") ^= 1;
                answer.body = body.into();
            }
            Some(Fault::Short) => answer.body.truncate(answer.body.len() / 2),
            _ => {}
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
        let known = answer.headers.iter().find(|(name, _)| name == "content-length" && asked.method == "HEAD");
        let length = known.map_or(answer.body.len().to_string(), |(_, length)| length.clone());
        head.push_str(&format!("content-length: {length}\r\n"));
        for (name, value) in answer.headers.iter().filter(|(name, _)| name != "content-length" && name != "transfer-encoding") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let sent = if matches!(fault, Some(Fault::Cut)) { answer.body.len() / 2 } else { answer.body.len() };
        let mut bytes = head.into_bytes();
        if asked.method != "HEAD" {
            bytes.extend_from_slice(&answer.body[..sent]);
        }
        if stream.write_all(&bytes).await.is_err() || sent < answer.body.len() {
            return;
        }
    }
}

/// The next request; `None` at the end of the connection.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Asked> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).expect("a head is text");
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> =
        lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    assert!(!headers.contains_key("transfer-encoding"), "a body without a length: {head}");
    if headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a number"));
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer.drain(..length).collect::<Vec<u8>>().into();
    Some(Asked { method, target, headers, body })
}

/// What a bucket answers where one in a directory does otherwise: it is not made by a put, and a common prefix of keys is no object.
fn missing(root: &Path, asked: &Asked) -> Option<Answer> {
    let path = asked.target.split('?').next().unwrap_or_default().trim_start_matches('/');
    match path.split_once('/') {
        Some((_, "")) if asked.method == "PUT" => None,
        Some((bucket, _)) if !root.join(bucket).is_dir() => Some(Answer::error(404, "NoSuchBucket")),
        Some((_, key)) if !key.is_empty() && matches!(asked.method.as_str(), "GET" | "HEAD") && root.join(path).is_dir() => {
            Some(Answer::error(404, "NoSuchKey"))
        }
        _ => None,
    }
}

async fn call(service: &S3Service, asked: &Asked) -> Answer {
    let mut request = s3s::HttpRequest::new(s3s::Body::from(asked.body.clone()));
    *request.method_mut() = asked.method.parse().expect("a method");
    *request.uri_mut() = asked.target.parse().expect("a target");
    *request.headers_mut() = (&asked.headers).try_into().expect("headers");
    let response = match service.call(request).await {
        Ok(response) => response,
        Err(error) => return Answer::new(500, format!("{error:?}")),
    };
    let status = response.status().as_u16();
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let headers = response.headers().iter().map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes()))).collect();
    let body = response.into_body().store_all_limited(usize::MAX).await.expect("a body in memory or a file");
    Answer { status, headers, body }
}
