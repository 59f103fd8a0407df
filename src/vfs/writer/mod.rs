//! `Writers`: write buffers of all inodes. Bytes are buffered, cut into slices and blocks, uploaded, and committed in order (data §5).
//!
//! `machine.rs` decides, as a synchronous state machine per inode (`event.rs`: what goes in and out); `shell.rs` performs; this file is
//! what the rest of `vfs` calls.

mod backend;
mod event;
mod machine;
mod shell;
mod slice;

#[cfg(test)]
mod machine_tests;
#[cfg(test)]
mod shell_tests;
#[cfg(test)]
pub(crate) mod testing;

use crate::block::{BlockStore, FRAME_BYTES_MAX};
use crate::env::Share;
use crate::meta::Meta;
use crate::types::{Attr, BlockId, CHUNK_BYTES, Caller, Errno, FILE_BYTES_MAX, Ino, block_count, chunk_parts};
use backend::{Backend, Live};
use bytes::Bytes;
use event::{Event, Ready, Shape};
use shell::{Entry, Shell};
use slice::SLICE_OVERHEAD;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// A request that waits for data or memory listens to its interruption only after this time: the kernel interrupts for signals that an
/// application handles, too, and hardly any expects EINTR from a file. What hangs can be called off; whoever is killed is gone within a second.
pub(crate) const INTERRUPT_AFTER: Duration = Duration::from_millis(800);
/// A write is buffered in pieces of at most this, so that its share of the budget is small; the kernel sends no more at once.
const PIECE_BYTES_MAX: usize = 1 << 20;
/// Smallest budget: two pieces with their overhead. Less could not hold one write of the kernel.
pub(crate) const BUFFER_BYTES_MIN: usize = 4 << 20;
/// Whole blocks the budget must hold for blocks to get their room at once: writers of several files, and what is on its way.
const WHOLE_BLOCKS_MIN: usize = 8;
/// Slices of one inode that are not committed. Every write of random offsets makes one, and each event looks at all of them.
const PENDING_SLICES_MAX: usize = 1024;
/// Growth is checked in steps of this, so that a long sequential write does not ask the store each time.
const GROWTH_STEP: u64 = 4 << 20;
/// Blocks of one inode on their way at once. Each durable put on a disk costs a sync of its own; four keep it busy without letting one file
/// take every upload slot of the volume.
const UPLOADS_NEAR_MAX: usize = 4;
/// The same where a put takes tens of milliseconds on a connection of its own; the upload slots of the volume bound all files together.
const UPLOADS_FAR_MAX: usize = 16;
/// How often ages are looked at.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often a writer that waits for memory looks for more to send off.
const RELIEVE_EVERY: Duration = Duration::from_millis(100);
/// A writer that waits for memory this long while flushes of others fail is told the failure. Longer than a bucket's usual hiccups.
const BUDGET_WAIT_MAX: Duration = Duration::from_secs(60);

/// What the writers are made of.
pub struct WritersConfig {
    /// Metadata.
    pub meta: Arc<Meta>,
    /// Blocks.
    pub blocks: Arc<BlockStore>,
    /// Memory of all write buffers together.
    pub memory: Share,
}

/// The write buffers of one volume.
pub struct Writers {
    shell: Arc<Shell>,
    shape: Shape,
    table: Mutex<Table>,
    /// When memory was last looked for, in milliseconds of the monotonic clock.
    relieved_ms: AtomicU64,
    /// For the background task, which must not keep the writers alive.
    weak: Weak<Writers>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Ino, Arc<Entry>>,
    /// The background task runs. It ends when there is nothing left to look at.
    sweeping: bool,
}

impl Writers {
    /// Writers over a volume's metadata and blocks.
    pub fn new(config: WritersConfig) -> Arc<Writers> {
        let frame_bytes_max = if config.meta.journal().is_on() { FRAME_BYTES_MAX } else { 0 };
        let uploads_max = if config.blocks.on_server() { UPLOADS_FAR_MAX } else { UPLOADS_NEAR_MAX };
        let block_bytes = config.blocks.block_bytes();
        let whole_blocks = block_bytes as usize <= config.memory.total() / WHOLE_BLOCKS_MIN;
        let shape = Shape { block_bytes, frame_bytes_max, uploads_max, whole_blocks };
        let clock = config.meta.clock().clone();
        let backend = Arc::new(Live { meta: config.meta, blocks: config.blocks });
        Writers::over(backend, clock, shape, config.memory)
    }

    fn over(backend: Arc<dyn Backend>, clock: Arc<dyn crate::env::Clock>, shape: Shape, memory: Share) -> Arc<Writers> {
        assert!(memory.at_most(BUFFER_BYTES_MIN / 2) == BUFFER_BYTES_MIN / 2, "a write of the kernel fits into the budget");
        let shell = Arc::new(Shell { backend, clock, budget: memory });
        Arc::new_cyclic(|weak| Writers { shell, shape, table: Mutex::default(), relieved_ms: AtomicU64::new(0), weak: weak.clone() })
    }

    /// Buffers `data` for `offset`. Waits for memory; a long wait is interrupted by `caller.cancel` (INTR) as long as nothing has been
    /// taken over. An earlier failure in the background that nobody was told is told here, once, and nothing is taken over.
    pub async fn write(&self, caller: &Caller, ino: Ino, offset: u64, data: Bytes) -> Result<(), Errno> {
        if data.is_empty() {
            return Ok(());
        }
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::FBIG)?;
        let entry = self.entry(ino);
        let (error, pending) = {
            let mut state = entry.state();
            (state.machine.take_error(), state.machine.pending())
        };
        if let Some(errno) = error {
            return Err(errno);
        }
        if pending >= PENDING_SLICES_MAX {
            self.flush_entry(&entry).await?;
        }
        self.check_growth(&entry, end).await?;
        let mut at = offset;
        for piece in data.chunks(PIECE_BYTES_MAX) {
            // A piece touches at most two chunks, so it makes at most two slices, each with one block that grows. What is not needed goes
            // back at once.
            let slices = chunk_parts(at..at + piece.len() as u64).count();
            let room = if self.shape.whole_blocks { self.shape.block_bytes as usize } else { 0 };
            let cost = piece.len() + slices * (SLICE_OVERHEAD + room);
            // Once a part is taken over the rest follows: a write is not left half done.
            let caller = if at == offset { Some(caller) } else { None };
            self.take(caller, &entry, cost).await?;
            self.shell.feed(&entry, Event::Written { offset: at, data: piece }, cost);
            at += piece.len() as u64;
        }
        // Uploads begin before writers have to wait for them.
        if self.shell.budget.free() < self.shell.budget.total() / 4 {
            self.relieve();
        }
        Ok(())
    }

    /// Commits what is buffered, then `data` at the end of the file as the store knows it then; answers where that was. Data of more
    /// than a chunk becomes several appends.
    pub async fn append(&self, caller: &Caller, ino: Ino, data: Bytes) -> Result<u64, Errno> {
        let entry = self.entry(ino);
        self.flush_entry(&entry).await?;
        let mut first = None;
        let mut rest = data;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(CHUNK_BYTES as usize));
            let waits = if first.is_none() { Some(caller) } else { None };
            let at = self.append_piece(waits, &entry, piece).await?;
            first = first.or(Some(at));
        }
        Ok(first.unwrap_or(0))
    }

    /// Uploads and commits everything that was written before the call. On failure the data stays and the next flush tries again.
    pub async fn flush(&self, ino: Ino) -> Result<(), Errno> {
        match self.existing(ino) {
            Some(entry) => self.flush_entry(&entry).await,
            None => Ok(()),
        }
    }

    /// Flushes every inode; answers the first failure after all were tried.
    pub async fn flush_all(&self) -> Result<(), Errno> {
        let mut entries = self.all();
        entries.sort_by_key(|entry| entry.ino);
        let waits: Vec<_> = entries.iter().map(|entry| self.shell.flush(entry)).collect();
        let mut outcome = Ok(());
        for wait in waits {
            outcome = outcome.and(wait.await.unwrap_or(Err(Errno::IO)));
        }
        outcome
    }

    /// Length and times as the buffered data will make them. Call it on attributes right after they were read.
    pub fn overlay(&self, ino: Ino, attr: &mut Attr) {
        if let Some(entry) = self.existing(ino) {
            let now = self.shell.now();
            entry.state().machine.overlay(attr, now);
        }
    }

    /// The inode was read after whatever this process has committed, under a lock that keeps others from changing it.
    pub fn forget_recent(&self, ino: Ino) {
        if let Some(entry) = self.existing(ino) {
            entry.state().machine.forget_recent();
        }
    }

    /// Whether bytes of the inode are buffered and not committed.
    pub fn is_dirty(&self, ino: Ino) -> bool {
        self.existing(ino).is_some_and(|entry| entry.state().machine.is_dirty())
    }

    /// Bytes of the budget in use.
    pub fn held_bytes(&self) -> u64 {
        self.shell.budget.held() as u64
    }

    /// Whether bytes of any inode are buffered and not committed.
    pub fn any_dirty(&self) -> bool {
        self.all().iter().any(|entry| entry.state().machine.is_dirty())
    }

    /// A writable handle was opened: data whose flush fails is kept until `closed` was called as often.
    pub fn opened(&self, ino: Ino) {
        let entry = self.entry(ino);
        self.shell.count(&entry, |handles| handles.saturating_add(1));
    }

    /// A writable handle was released, after its flush. With the last one, data that could not be flushed is given up.
    pub fn closed(&self, ino: Ino) {
        let Some(entry) = self.existing(ino) else { return };
        self.shell.count(&entry, |handles| handles.saturating_sub(1));
    }

    async fn flush_entry(&self, entry: &Arc<Entry>) -> Result<(), Errno> {
        // The sender lives in the entry until it was used, and every action that was begun ends in an event.
        self.shell.flush(entry).await.unwrap_or(Err(Errno::IO))
    }

    async fn append_piece(&self, caller: Option<&Caller>, entry: &Arc<Entry>, data: Bytes) -> Result<u64, Errno> {
        let cost = self.shell.budget.at_most(data.len());
        self.take(caller, entry, cost).await?;
        let born = self.shell.now().mono;
        let _taken = Taken { budget: &self.shell.budget, bytes: cost };
        let backend = &self.shell.backend;
        let id = backend.next_slice().await?;
        let len = data.len() as u32;
        let small = len <= self.shape.frame_bytes_max && len <= self.shape.block_bytes;
        let stored = async {
            for index in 0..if small { 0 } else { block_count(len, self.shape.block_bytes) } {
                let Some(block) = BlockId::of(id, len, index, self.shape.block_bytes) else { break };
                let from = (index as usize) * self.shape.block_bytes as usize;
                backend.upload(block, data.slice(from..from + block.len as usize)).await?;
            }
            let slice = Ready { pos: 0, id, len, frame: small.then(|| data.clone()), born };
            backend.append(entry.ino, slice, self.shell.now().wall).await
        };
        let (offset, attr) = match stored.await {
            Ok(stored) => stored,
            Err(errno) => {
                // These say that nothing happened.
                if matches!(errno, Errno::NOSPC | Errno::DQUOT | Errno::NOENT) {
                    backend.discard(vec![(id, len)]).await;
                }
                return Err(errno);
            }
        };
        let now = self.shell.now();
        entry.state().machine.note(&attr, now);
        Ok(offset)
    }

    /// The dry check of §3.2 of the design: a full volume is told at write(2), not only at close.
    async fn check_growth(&self, entry: &Arc<Entry>, end: u64) -> Result<(), Errno> {
        if end <= entry.state().checked_to {
            return Ok(());
        }
        let step = end.next_multiple_of(GROWTH_STEP).min(FILE_BYTES_MAX);
        match self.shell.backend.check_growth(entry.ino, step).await {
            Ok(()) => {
                let mut state = entry.state();
                state.checked_to = state.checked_to.max(step);
                Ok(())
            }
            // There may be room for this write and not for a whole step.
            Err(Errno::NOSPC | Errno::DQUOT) => self.shell.backend.check_growth(entry.ino, end).await,
            Err(errno) => Err(errno),
        }
    }

    /// Takes bytes of the budget; while there are none, makes others flush.
    async fn take(&self, caller: Option<&Caller>, entry: &Arc<Entry>, bytes: usize) -> Result<(), Errno> {
        let budget = &self.shell.budget;
        if budget.try_take(bytes) {
            return Ok(());
        }
        self.relieve();
        let began = self.shell.now().mono;
        let take = budget.take(bytes);
        tokio::pin!(take);
        loop {
            let cancelled = async {
                match caller {
                    Some(caller) if self.shell.now().mono.saturating_sub(began) >= INTERRUPT_AFTER => caller.cancel.cancelled().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut take => return Ok(()),
                () = cancelled => return Err(Errno::INTR),
                // What others were just about to buffer when we looked is only seen by looking again.
                () = tokio::time::sleep(RELIEVE_EVERY) => self.relieve(),
            }
            if caller.is_some()
                && let Some(errno) = entry.state().machine.take_error()
            {
                return Err(errno);
            }
            if self.shell.now().mono.saturating_sub(began) > BUDGET_WAIT_MAX && self.any_failed() {
                return Err(Errno::IO);
            }
        }
    }

    /// Sends off what holds most memory without being on its way, and what has failed, until it frees a quarter of the budget.
    fn relieve(&self) {
        let now_ms = self.shell.now().mono.as_millis() as u64;
        let before = self.relieved_ms.swap(now_ms, Ordering::Relaxed);
        // Every write comes here while memory is short; a look at all inodes ten times a second is enough, and none is missed for good
        // because waiters come again.
        if before != 0 && now_ms < before + RELIEVE_EVERY.as_millis() as u64 / 2 {
            self.relieved_ms.store(before, Ordering::Relaxed);
            return;
        }
        let loose = |entry: Arc<Entry>| {
            let bytes = entry.state().machine.loose();
            (bytes, entry)
        };
        let mut entries: Vec<_> = self.all().into_iter().map(loose).filter(|(bytes, _)| *bytes > 0).collect();
        entries.sort_by_key(|(bytes, entry)| (std::cmp::Reverse(*bytes), entry.ino));
        let mut freed = 0;
        for (bytes, entry) in entries {
            if freed >= self.shell.budget.total() / 4 {
                break;
            }
            freed += bytes;
            self.shell.feed(&entry, Event::Pressed, 0);
        }
    }

    fn any_failed(&self) -> bool {
        self.all().iter().any(|entry| entry.state().machine.has_failed())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no code under it panics")
    }

    fn all(&self) -> Vec<Arc<Entry>> {
        self.table().entries.values().cloned().collect()
    }

    fn existing(&self, ino: Ino) -> Option<Arc<Entry>> {
        self.table().entries.get(&ino).cloned()
    }

    fn entry(&self, ino: Ino) -> Arc<Entry> {
        let mut table = self.table();
        if !table.sweeping {
            table.sweeping = true;
            tokio::spawn(sweep(self.weak.clone()));
        }
        table.entries.entry(ino).or_insert_with(|| Arc::new(Entry::new(ino, self.shape))).clone()
    }

    /// Looks at ages and forgets what is idle; false when nothing is left to look at.
    fn sweep(&self) -> bool {
        for entry in self.all() {
            self.shell.feed(&entry, Event::Aged, 0);
        }
        let now = self.shell.now();
        let mut table = self.table();
        // Whoever is about to use an entry holds it since it was looked up under this lock, so a count of one means nobody.
        table.entries.retain(|_, entry| {
            let unused = Arc::strong_count(entry) == 1 && {
                let state = entry.state();
                state.handles == 0 && state.machine.is_idle(now)
            };
            !unused
        });
        table.sweeping = !table.entries.is_empty();
        table.sweeping
    }
}

/// Bytes of the budget that go back however a request ends.
struct Taken<'a> {
    budget: &'a Share,
    bytes: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
    }
}

async fn sweep(writers: Weak<Writers>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(writers) = writers.upgrade() else { return };
        if !writers.sweep() {
            return;
        }
    }
}
