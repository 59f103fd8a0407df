//! Metrics over HTTP, for Prometheus: `GET /metrics`. Everything else is not found. A slow or hostile client costs a connection for seconds.

use crate::daemon::MetricsPlan;
use crate::volume::Gauges;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, error, info};

/// Connections at once. One who scrapes has one.
const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request; more are none of Prometheus.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Time for one request and its answer.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Time for the request alone: who only connects must not keep others away for long.
const ASK_TIME_MAX: Duration = Duration::from_secs(2);
/// Pause after the system could not take a connection.
const PAUSE_FAILED: Duration = Duration::from_secs(1);

/// Begins to serve. A port that is taken is no reason not to mount: one that was asked for is an error line, otherwise any port is as good.
pub(super) fn serve(plan: &MetricsPlan, runtime: &Runtime, gauges: Gauges) {
    match listen(plan) {
        Ok(listener) => {
            let address = listener.local_addr().map_or_else(|_| plan.address.clone(), |address| address.to_string());
            info!("Prometheus metrics listening on {address}");
            let _inside = runtime.enter();
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => drop(runtime.spawn(accept(listener, Arc::new(gauges)))),
                Err(error) => error!("there are no metrics: {error}"),
            }
        }
        Err(error) => error!("there are no metrics: cannot listen on {}: {error}; choose another address with --metrics", plan.address),
    }
}

fn listen(plan: &MetricsPlan) -> io::Result<TcpListener> {
    let listener = match TcpListener::bind(&plan.address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !plan.asked_for => {
            let host = plan.address.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
            TcpListener::bind(format!("{host}:0"))?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn accept(listener: tokio::net::TcpListener, gauges: Arc<Gauges>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let gauges = gauges.clone();
                tokio::spawn(async move {
                    let _permit = permit;
                    match timeout(REQUEST_TIME_MAX, answer(stream, &gauges)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!("metrics for {peer}: {error}"),
                        Err(_) => debug!("metrics for {peer}: too slow"),
                    }
                });
            }
            Err(error) => {
                debug!("metrics: {error}");
                tokio::time::sleep(PAUSE_FAILED).await;
            }
        }
    }
}

async fn answer(mut stream: TcpStream, gauges: &Gauges) -> io::Result<()> {
    let mut request = Vec::new();
    let read = async {
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if request.len() >= REQUEST_BYTES_MAX || stream.read_buf(&mut request).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
        }
        Ok(())
    };
    timeout(ASK_TIME_MAX, read).await??;
    let line = request.split(|c| *c == b'\r').next().unwrap_or_default();
    let mut words = line.split(|c| *c == b' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|c| *c == b'?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => ("200 OK", gauges.page().await),
        (b"GET" | b"HEAD", _) => ("404 Not Found", "metrics are at /metrics\n".into()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if method != b"HEAD" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Where metrics are served if nothing is said, by the program this one stands for.
pub const ADDRESS_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9567);
