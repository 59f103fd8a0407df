//! Finding the server that holds the volume, and connecting to it.
//!
//! All keys of a volume in a cluster bear the same hash tag, so one node holds all of them and one connection to it is enough.

use super::error::Fault;
use super::tracking::Tracking;
use super::url::{Host, RedisUrl, Tls, Topology};
use super::wire::{bytes, sequence};
use crate::meta::store::StoreError;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, RedisConnectionInfo, TlsCertificates, Value as Reply,
};
use std::net::SocketAddr;
use std::sync::Arc;

/// Where keys are: on a server of their own, or under a hash tag in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Database,
    Cluster,
}

/// Knows how to reach the server.
pub(super) struct Connector {
    url: RedisUrl,
    certificates: Option<TlsCertificates>,
}

/// Requests that wait to be sent over a connection. Beyond them who is first in the queue for a place gets it, also a request that was begun and is not
/// driven just then: so there are more places than such requests.
const REQUESTS_QUEUED_MAX: usize = 1024;

impl Connector {
    /// Reads the files of TLS.
    pub fn new(url: RedisUrl) -> Result<Connector, StoreError> {
        let certificates = url.tls.as_ref().map(certificates).transpose()?;
        Ok(Connector { url, certificates })
    }

    /// Whether the address is of a cluster: said by its form, or by the only server it names.
    pub async fn layout(&self) -> Result<Layout, Fault> {
        let host = match &self.url.topology {
            Topology::Cluster(_) => return Ok(Layout::Cluster),
            Topology::Sentinel { .. } => return Ok(Layout::Database),
            Topology::Single(host) => self.address(host),
            Topology::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut conn = self.dial(host, self.user(0)).await?;
        match ask(&mut conn, redis::cmd("CLUSTER").arg("INFO")).await {
            Ok(reply) => {
                let text = bytes(reply).map_err(Fault::Store)?.unwrap_or_default();
                Ok(if String::from_utf8_lossy(&text).contains("cluster_state:") { Layout::Cluster } else { Layout::Database })
            }
            // Not a cluster, or not allowed to ask: then SELECT will tell.
            Err(Fault::Store(_)) => Ok(Layout::Database),
            Err(fault) => Err(fault),
        }
    }

    /// A connection to the server that holds the keys now, and its address for messages. What the server pushes goes to `tracking`.
    pub async fn connect(
        &self,
        layout: Layout,
        prefix: &[u8],
        tracking: Option<&Arc<Tracking>>,
    ) -> Result<(MultiplexedConnection, String), Fault> {
        match (&self.url.topology, layout) {
            (Topology::Unix(path), Layout::Database) => {
                Ok((self.dial_told(ConnectionAddr::Unix(path.clone()), tracking).await?, path.display().to_string()))
            }
            (Topology::Single(host), Layout::Database) => Ok((self.dial_told(self.address(host), tracking).await?, host.to_string())),
            (Topology::Sentinel { master, sentinels }, _) => {
                let host = self.master(master, sentinels).await?;
                let mut conn = self.dial_told(self.address(&host), tracking).await?;
                // Sentinels may be behind: what they call the master may have been demoted.
                let role = sequence(ask(&mut conn, &redis::cmd("ROLE")).await?).map_err(Fault::Store)?;
                match role.into_iter().next().map(bytes) {
                    Some(Ok(Some(role))) if role == "master" => Ok((conn, host.to_string())),
                    _ => Err(Fault::Elsewhere(format!("{host} is not the master of {master} any more"))),
                }
            }
            (Topology::Cluster(seeds), _) => self.owner(seeds, prefix).await,
            (Topology::Single(host), Layout::Cluster) => self.owner(std::slice::from_ref(host), prefix).await,
            (Topology::Unix(path), Layout::Cluster) => self.owner_from(ConnectionAddr::Unix(path.clone()), prefix).await,
        }
    }

    fn address(&self, host: &Host) -> ConnectionAddr {
        match &self.url.tls {
            None => ConnectionAddr::Tcp(host.name.clone(), host.port),
            // The name that is checked; `dial` resolves the real one.
            Some(tls) => ConnectionAddr::TcpTls { host: host.name.clone(), port: host.port, insecure: tls.insecure, tls_params: None },
        }
    }

    fn user(&self, db: u32) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default().set_db(i64::from(db)).set_lib_name("pando", env!("CARGO_PKG_VERSION"));
        if !self.url.user.is_empty() {
            info = info.set_username(&self.url.user);
        }
        if !self.url.password.is_empty() {
            info = info.set_password(&self.url.password);
        }
        info
    }

    /// A connection to our database, by the protocol in which the server can tell something by itself, if it knows it.
    async fn dial_told(&self, addr: ConnectionAddr, tracking: Option<&Arc<Tracking>>) -> Result<MultiplexedConnection, Fault> {
        let user = self.user(self.url.db);
        if let Some(tracking) = tracking.filter(|tracking| tracking.is_wanted()) {
            match self.dial_by(addr.clone(), user.clone(), Some(tracking)).await {
                // It may be the wrong password, too: the old protocol will tell.
                Err(Fault::Store(error)) => {
                    let conn = self.dial(addr, user).await?;
                    tracking.refuse(&error.to_string());
                    return Ok(conn);
                }
                outcome => return outcome,
            }
        }
        self.dial(addr, user).await
    }

    async fn dial(&self, addr: ConnectionAddr, user: RedisConnectionInfo) -> Result<MultiplexedConnection, Fault> {
        self.dial_by(addr, user, None).await
    }

    async fn dial_by(
        &self,
        addr: ConnectionAddr,
        user: RedisConnectionInfo,
        tracking: Option<&Arc<Tracking>>,
    ) -> Result<MultiplexedConnection, Fault> {
        let fail = |e: &redis::RedisError| match Fault::of(e) {
            // Nothing was sent that could have been lost.
            Fault::Lost(why) => Fault::Elsewhere(why),
            fault => fault,
        };
        let mut config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.url.dial_timeout))
            .set_pipeline_buffer_size(REQUESTS_QUEUED_MAX)
            .set_response_timeout(Some(self.url.read_timeout));
        let mut user = user;
        if let Some(tracking) = tracking {
            user = user.set_protocol(ProtocolVersion::RESP3);
            let tracking = tracking.clone();
            config = config.set_push_sender(move |push: PushInfo| {
                tracking.pushed(push);
                Ok::<(), ()>(())
            });
        }
        let mut addr = addr;
        if let (ConnectionAddr::TcpTls { host, .. }, Some(name)) =
            (&mut addr, self.url.tls.as_ref().and_then(|tls| tls.server_name.as_ref()))
        {
            let real = std::mem::replace(host, name.clone());
            config = config.set_dns_resolver(Resolver { real });
        }
        let info: ConnectionInfo = addr.into_connection_info().map_err(|e| fail(&e))?;
        let info = info.set_redis_settings(user).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = match &self.certificates {
            None => Client::open(info),
            Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        };
        let client = client.map_err(|e| Fault::Store(StoreError::Failed(e.to_string())))?;
        client.get_multiplexed_async_connection_with_config(&config).await.map_err(|e| fail(&e))
    }

    /// Asks the sentinels one after the other.
    async fn master(&self, name: &str, sentinels: &[Host]) -> Result<Host, Fault> {
        let mut last = Fault::Elsewhere("no sentinel is named".into());
        for sentinel in sentinels {
            let mut user = RedisConnectionInfo::default();
            if !self.url.sentinel_password.is_empty() {
                user = user.set_password(&self.url.sentinel_password);
            }
            let found = async {
                let mut conn = self.dial(self.address(sentinel), user).await?;
                ask(&mut conn, redis::cmd("SENTINEL").arg("get-master-addr-by-name").arg(name)).await
            };
            match found.await.map(sequence) {
                Ok(Ok(parts)) => {
                    let mut parts = parts.into_iter().filter_map(|part| bytes(part).ok().flatten());
                    if let (Some(host), Some(port)) =
                        (parts.next(), parts.next().and_then(|port| std::str::from_utf8(&port).ok()?.parse().ok()))
                    {
                        return Ok(Host { name: String::from_utf8_lossy(&host).into_owned(), port });
                    }
                    last = Fault::Elsewhere(format!("sentinel {sentinel} knows no master of this name"));
                }
                Ok(Err(_)) => last = Fault::Elsewhere(format!("sentinel {sentinel} knows no master {name}")),
                // A wrong password, say: another sentinel may be right, and if none is, the reason is told.
                Err(Fault::Store(error)) => last = Fault::Elsewhere(format!("sentinel {sentinel}: {error}")),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    /// The node of a cluster that has the slot of our hash tag.
    async fn owner(&self, seeds: &[Host], prefix: &[u8]) -> Result<(MultiplexedConnection, String), Fault> {
        let mut last = Fault::Elsewhere("no node of the cluster is named".into());
        for seed in seeds {
            match self.owner_from(self.address(seed), prefix).await {
                Ok(found) => return Ok(found),
                Err(Fault::Store(error)) => return Err(Fault::Store(error)),
                Err(fault) => {
                    last = match fault {
                        Fault::Elsewhere(why) => Fault::Elsewhere(format!("{seed}: {why}")),
                        fault => fault,
                    }
                }
            }
        }
        Err(last)
    }

    async fn owner_from(&self, seed: ConnectionAddr, prefix: &[u8]) -> Result<(MultiplexedConnection, String), Fault> {
        let seed_host = match &seed {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            _ => String::new(),
        };
        let mut conn = self.dial(seed, self.user(0)).await?;
        let Reply::Int(slot) = ask(&mut conn, redis::cmd("CLUSTER").arg("KEYSLOT").arg(prefix)).await? else {
            return Err(Fault::Store(StoreError::Failed("the cluster names no slot".into())));
        };
        let slots = sequence(ask(&mut conn, redis::cmd("CLUSTER").arg("SLOTS")).await?).map_err(Fault::Store)?;
        for range in slots {
            let Ok(mut parts) = sequence(range).map(Vec::into_iter) else { continue };
            let (Some(Reply::Int(from)), Some(Reply::Int(to)), Some(node)) = (parts.next(), parts.next(), parts.next()) else { continue };
            if !(from..=to).contains(&slot) {
                continue;
            }
            let mut node = sequence(node).map_err(Fault::Store)?.into_iter();
            let name = node.next().and_then(|name| bytes(name).ok().flatten()).unwrap_or_default();
            let Some(port) = node.next().and_then(|port| if let Reply::Int(port) = port { u16::try_from(port).ok() } else { None }) else {
                continue;
            };
            // A node that does not know its own address means the one it was asked at.
            let name = if name.is_empty() { seed_host.clone() } else { String::from_utf8_lossy(&name).into_owned() };
            let host = Host { name, port };
            return Ok((self.dial(self.address(&host), self.user(0)).await?, host.to_string()));
        }
        Err(Fault::Elsewhere(format!("no node has the slot {slot}")))
    }
}

/// One command; a refusal is a fault.
pub(super) async fn ask(conn: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Reply, Fault> {
    match conn.send_packed_command(cmd).await {
        Ok(Reply::ServerError(error)) => Err(Fault::of_reply(&error)),
        Ok(reply) => Ok(as_before(reply)),
        Err(error) => Err(Fault::of(&error)),
    }
}

/// Commands that are carried out together, by one transaction around them (`MULTI` first, `EXEC` last): their answers. `None` if the server does
/// not let us have one.
pub(super) async fn ask_together(conn: &mut MultiplexedConnection, transaction: &Pipeline) -> Result<Option<Vec<Reply>>, Fault> {
    let replies = conn.send_packed_commands(transaction, 0, transaction.len()).await.map_err(|error| Fault::of(&error))?;
    if matches!(replies.first(), Some(Reply::ServerError(_))) {
        return Ok(None);
    }
    let mut last = None;
    for reply in replies {
        match reply {
            Reply::ServerError(error) => return Err(Fault::of_reply(&error)),
            reply => last = Some(reply),
        }
    }
    let Some(Reply::Array(answers)) = last else { return Err(Fault::Lost("a transaction was not carried out".into())) };
    let answer = |reply| match reply {
        Reply::ServerError(error) => Err(Fault::of_reply(&error)),
        reply => Ok(as_before(reply)),
    };
    answers.into_iter().map(answer).collect::<Result<_, _>>().map(Some)
}

/// An answer in the newer protocol as the older one has it: fields and values in a row, numbers as text.
pub(super) fn as_before(reply: Reply) -> Reply {
    match reply {
        Reply::Map(pairs) => Reply::Array(pairs.into_iter().flat_map(|(field, value)| [as_before(field), as_before(value)]).collect()),
        Reply::Array(items) => Reply::Array(items.into_iter().map(as_before).collect()),
        Reply::Double(number) => Reply::BulkString(number.to_string().into_bytes()),
        Reply::VerbatimString { text, .. } => Reply::BulkString(text.into_bytes()),
        Reply::Boolean(is) => Reply::Int(i64::from(is)),
        reply => reply,
    }
}

fn certificates(tls: &Tls) -> Result<TlsCertificates, StoreError> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|e| StoreError::Failed(format!("cannot read the TLS file {}: {e}", path.display())))
    };
    let client_tls = match (&tls.cert_file, &tls.key_file) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? }),
        _ => return Err(StoreError::Failed("tls-cert-file and tls-key-file belong together; one of them is missing".into())),
    };
    Ok(TlsCertificates { client_tls, root_cert: tls.ca_file.as_ref().map(read).transpose()? })
}

/// Finds the server although the name to check in its certificate is another one.
struct Resolver {
    real: String,
}

impl redis::io::AsyncDNSResolver for Resolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        _checked: &'b str,
        port: u16,
    ) -> redis::RedisFuture<'a, Box<dyn Iterator<Item = SocketAddr> + Send + 'a>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((self.real.as_str(), port)).await.map_err(redis::RedisError::from)?;
            Ok(Box::new(found.collect::<Vec<_>>().into_iter()) as Box<dyn Iterator<Item = SocketAddr> + Send + 'a>)
        })
    }
}
