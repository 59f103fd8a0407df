//! `Operator`: what an operator, or anybody within the permissions of the files, can ask of a mount while it is in use.
//!
//! Requests and answers are JSON, as commands and the socket of the mount carry them. Paths are those below the root of the mount; nothing
//! else can be named, so that the mount of a subdirectory gives nothing away.

mod summary;
mod tree;
mod undelete;
mod walk;
mod warmup;

use crate::block::BlockStore;
use crate::chunk::Chunks;
use crate::meta::Meta;
use crate::meta::ops::acl::{ENTER, READ};
use crate::types::{Asker, Cancel, Errno, Ino};
use crate::vfs::Vfs;
use crate::vfs::writer::Writers;
use crate::volume::gauges::Gauges;
use crate::volume::{VERSION, info};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// Entries of a directory read at once.
const PAGE: u32 = 1000;

/// Requests in the background at once; each has many transfers under way by itself.
pub(super) const BACKGROUND_MAX: usize = 4;

/// One mount, as commands ask it.
pub struct Operator {
    pub(super) meta: Arc<Meta>,
    pub(super) blocks: Arc<BlockStore>,
    pub(super) chunks: Arc<Chunks>,
    pub(super) writers: Arc<Writers>,
    pub(super) vfs: Arc<Vfs>,
    /// What is counted.
    pub(super) gauges: Gauges,
    /// The root of the mount.
    pub(super) root: Ino,
    pub(super) read_only: bool,
    /// Requests that go on when nobody waits for them.
    pub(super) background: Arc<Semaphore>,
    /// Set when the mount ends.
    pub(super) end: Cancel,
}

/// How far a request has come.
#[derive(Debug, Default)]
pub struct Progress {
    count: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    /// So many things and bytes more are done.
    pub fn add(&self, count: u64, bytes: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Things and bytes that are done.
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// Why a request was not carried out.
#[derive(Debug)]
pub struct Failure {
    /// For programs.
    pub errno: Errno,
    /// For people.
    pub message: String,
}

impl Failure {
    /// With what it happened at in front.
    pub fn at(what: impl std::fmt::Display, errno: Errno) -> Failure {
        Failure { errno, message: format!("{what}: {}", errno.text()) }
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure { errno, message: errno.text() }
    }
}

/// A field of a request.
fn text<'a>(request: &'a Value, field: &str) -> Result<&'a str, Failure> {
    request[field].as_str().ok_or_else(|| Failure::at(format!("the request has no {field}"), Errno::INVAL))
}

/// A switch of a request, off if it is not there.
fn switch(request: &Value, field: &str) -> bool {
    request[field].as_bool().unwrap_or(false)
}

/// Refuses everybody but root and whose mount it is.
fn only_for_the_owner(asker: &Asker, what: &str) -> Result<(), Failure> {
    // SAFETY: geteuid has no preconditions.
    if asker.is_root() || asker.uid == unsafe { libc::geteuid() } {
        return Ok(());
    }
    Err(Failure::at(format!("{what} is for root and for who has mounted the volume"), Errno::ACCES))
}

/// How many things are to be done at once.
fn threads(request: &Value) -> usize {
    request["Threads"].as_u64().map_or(1, |threads| threads.clamp(1, 255) as usize)
}

impl Operator {
    /// Carries a request out. What is called off through `asker` ends between two commits: what it has done stays, and all of it is consistent.
    pub async fn answer(self: &Arc<Self>, asker: &Asker, request: &Value, progress: &Progress) -> Result<Value, Failure> {
        match text(request, "Command")? {
            "info" => self.info(asker, request).await,
            "summary" => self.summary(asker, request, progress).await,
            "rmr" => self.rmr(asker, request, progress).await,
            "clone" => self.clone_tree(asker, request, progress).await,
            "compact" => self.compact(asker, request, progress).await,
            "warmup" => self.warmup(asker, request, progress).await,
            "undelete" => self.undelete(asker, request, progress).await,
            "staging" => self.staging(asker, request).await,
            // Anybody may see it, as where it is scraped.
            "metrics" => Ok(json!({ "Page": self.gauges.page().await })),
            "config" => self.config(asker),
            other => Err(Failure::at(format!("the process that serves the mount does not know {other:?}"), Errno::NOSYS)),
        }
    }

    /// What is staged on this host; with `Flush` it is uploaded at once from now on. For root and whose mount it is: others may not know of
    /// directories of this host.
    async fn staging(&self, asker: &Asker, request: &Value) -> Result<Value, Failure> {
        only_for_the_owner(asker, "what is staged")?;
        let setting = self.meta.setting();
        let uuid = setting.uuid();
        // A read-only client uploads nothing.
        let Some(staging) = self.blocks.staging().filter(|_| !self.read_only) else {
            return Ok(json!({ "UUID": uuid, "Writeback": false, "Blocks": 0, "Bytes": 0 }));
        };
        if switch(request, "Flush") {
            let failed =
                |why: &dyn std::fmt::Display| Failure { errno: Errno::IO, message: format!("cannot look for staged blocks: {why}") };
            // What lies there from before may not have been looked for yet.
            let scan = {
                let staging = staging.clone();
                move || staging.scan()
            };
            tokio::task::spawn_blocking(scan).await.map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
            staging.hurry();
        }
        let stats = staging.stats();
        let on = staging.is_on();
        Ok(json!({ "UUID": uuid, "Writeback": on, "Blocks": stats.blocks, "Bytes": stats.bytes, "Dirs": staging.places() }))
    }

    /// The setting of the volume without its secrets, as this mount knows it now. It names the bucket, which is no business of others.
    fn config(&self, asker: &Asker) -> Result<Value, Failure> {
        only_for_the_owner(asker, "the setting")?;
        Ok(json!({ "Setting": self.meta.setting().without_secrets(), "Version": VERSION, "Root": self.root.0, "ReadOnly": self.read_only }))
    }

    async fn info(&self, asker: &Asker, request: &Value) -> Result<Value, Failure> {
        let ino = match request["Inode"].as_u64() {
            // A number says nothing of the way to it.
            Some(_) if !asker.is_root() => return Err(Failure::at("inode numbers are for root", Errno::ACCES)),
            Some(ino) => Ino(ino),
            None => {
                let path = text(request, "Path")?;
                let found = self.walk(asker, path).await?;
                if !asker.is_root() {
                    let at = |errno| Failure::at(format!("/{path}"), errno);
                    let want = if found.attr.is_dir() { READ | ENTER } else { READ };
                    self.meta.check_access(asker, &found.attr, want).await.map_err(at)?;
                    if switch(request, "Recursive") && found.attr.is_dir() {
                        return Err(Failure::at("a whole tree is for root; `summary` counts what you may read", Errno::ACCES));
                    }
                }
                found.ino
            }
        };
        // What was written through this mount is shown, also if nobody has closed it.
        if self.writers.is_dirty(ino) {
            self.writers.flush(ino).await?;
        }
        let depth = info::Depth { recursive: switch(request, "Recursive"), strict: switch(request, "Strict") };
        let described = info::describe(self.meta.store(), &self.meta.setting(), ino, self.root, depth).await;
        let mut described = described.map_err(|error| Failure { errno: Errno::IO, message: error.to_string() })?;
        if !asker.is_root() {
            // Other names may lie where the user may not look.
            described.paths = vec![format!("/{}", text(request, "Path")?.trim_matches('/'))];
        }
        Ok(described.document())
    }

    /// The mount ends: what goes on in the background is called off.
    pub fn end(&self) {
        self.end.cancel();
    }

    fn writable(&self) -> Result<(), Failure> {
        if self.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }
}
