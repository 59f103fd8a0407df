//! A writer and readers, on its host and on another, against all that the file ever held: gets fail, come late or short; puts fail, come late, or
//! are done and answer an error; and compaction removes objects while their list is remembered. On the writer's host the last state is read, elsewhere
//! one that is not older than a second, nor than what the reader's kernel was last told. What could not be stored is kept, and stored by the next
//! flush.

use crate::block::{BlockConfig, BlockStore, Tuning};
use crate::cache::MemoryCache;
use crate::chunk::Chunks;
use crate::chunk::testing::{BLOCK_BYTES, Bench};
use crate::env::{Clock, Share};
use crate::meta::Meta;
use crate::object::ObjectError;
use crate::object::fault::{Fault, Request};
use crate::types::{Caller, Errno, Ino};
use crate::vfs::reader::{REREADS_MAX, Reader, Source, Streams};
use crate::vfs::writer::{Writers, WritersConfig};
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// The file stays below this: some blocks.
const FILE_BYTES: u64 = 5 * BLOCK_BYTES as u64;

#[derive(Clone, Debug)]
enum Op {
    /// The other host writes and closes.
    Write(u64, usize),
    /// It writes and reads some of the file through another handle.
    WriteAndRead(u64, usize, u64),
    /// It sets the length.
    Truncate(u64),
    /// It compacts, and deletes at once what was replaced.
    Compact,
    /// The reader's kernel asks for the attributes.
    Stat,
    Read(u64, u64),
    /// Time passes (milliseconds).
    Wait(u64),
    /// One of the next gets goes wrong.
    Fault(u32, Wrong),
    /// One of the next puts does.
    PutFault(u32, Unlucky),
}

#[derive(Clone, Copy, Debug)]
enum Wrong {
    Late,
    Cut,
    Short,
    /// As if somebody had deleted it just then.
    Missing,
}

#[derive(Clone, Copy, Debug)]
enum Unlucky {
    Late,
    Cut,
    /// It is done, and answers an error that is tried again.
    Lost,
    Full,
    /// It is done, and answers an error that is told.
    DoneAndFull,
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..FILE_BYTES - 400_000;
    let wrong = prop_oneof![Just(Wrong::Late), Just(Wrong::Cut), Just(Wrong::Short), Just(Wrong::Missing)];
    let unlucky =
        prop_oneof![Just(Unlucky::Late), Just(Unlucky::Cut), Just(Unlucky::Lost), Just(Unlucky::Full), Just(Unlucky::DoneAndFull)];
    let len = || prop_oneof![1usize..100, 70_000usize..400_000];
    prop_oneof![
        3 => (at(), len(), 0..FILE_BYTES).prop_map(|(at, len, from)| Op::WriteAndRead(at, len, from)),
        2 => (0u32..2, unlucky).prop_map(|(skip, unlucky)| Op::PutFault(skip, unlucky)),
        4 => (at(), len()).prop_map(|(at, len)| Op::Write(at, len)),
        1 => (0..FILE_BYTES).prop_map(Op::Truncate),
        2 => Just(Op::Compact),
        1 => Just(Op::Stat),
        8 => (0..FILE_BYTES, prop_oneof![1u64..5000, 100_000u64..1_000_000]).prop_map(|(at, len)| Op::Read(at, len)),
        2 => (1u64..1500).prop_map(Op::Wait),
        2 => (0u32..3, wrong).prop_map(|(skip, wrong)| Op::Fault(skip, wrong)),
    ]
}

/// A host that reads.
struct Host {
    meta: Arc<Meta>,
    reader: Reader,
    streams: Arc<Streams>,
}

impl Host {
    fn new(bench: &Bench, cache_bytes: u64) -> Host {
        bench.world.store.far.store(true, Ordering::Relaxed);
        let meta = bench.world.neighbour();
        let blocks = BlockStore::new(BlockConfig {
            objects: bench.faults.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec: Default::default(),
            cache: MemoryCache::new(cache_bytes),
            disk: None,
            frames: meta.clone(),
            tuning: Tuning { prefetches_max: 1, ..Tuning::default() },
        });
        let chunks = Chunks::new(meta.clone(), blocks.clone());
        let writers = Writers::new(WritersConfig { meta: meta.clone(), blocks: blocks.clone(), memory: Share::alone(4 << 20) });
        let reader = Reader::new(meta.clone(), blocks, chunks, writers, SECOND);
        Host { meta, reader, streams: Arc::default() }
    }

    async fn read(&self, ino: Ino, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        read(&self.reader, &self.streams, ino, at, len).await
    }
}

async fn read(reader: &Reader, streams: &Arc<Streams>, ino: Ino, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
    let source = Source { ino, length: 0, streams };
    Ok(reader.read(&Caller::root(), source, at..at + len).await?.concat())
}

/// What a file holds after a write.
fn written(content: &[u8], at: u64, data: &[u8]) -> Vec<u8> {
    let (at, end) = (at as usize, at as usize + data.len());
    let mut content = content.to_vec();
    content.resize(content.len().max(end), 0);
    content[at..end].copy_from_slice(data);
    content
}

fn part(content: &[u8], at: u64, len: u64) -> &[u8] {
    content.get(at as usize..content.len().min((at + len) as usize)).unwrap_or_default()
}

/// All the file has held, and until when.
struct History(Vec<(Vec<u8>, Duration)>);

impl History {
    fn now(&self) -> &[u8] {
        &self.0.last().expect("never empty").0
    }

    fn change(&mut self, at: Duration, content: Vec<u8>) {
        self.0.last_mut().expect("never empty").1 = at;
        self.0.push((content, Duration::MAX));
    }

    /// The states a read may show: those of the last second, and none before `told`.
    fn allowed(&self, now: Duration, told: usize) -> impl Iterator<Item = &[u8]> {
        self.0.iter().skip(told).filter(move |(_, until)| until.saturating_add(SECOND) >= now).map(|(content, _)| &content[..])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_is_read_is_one_recent_state(cache in prop_oneof![Just(0u64), Just(2u64 << 20)], ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new(0);
            let (meta, blocks) = (bench.world.meta.clone(), bench.blocks.clone());
            let writers = Writers::new(WritersConfig { meta: meta.clone(), blocks, memory: Share::alone(4 << 20) });
            let host = Host::new(&bench, cache);
            let own = Reader::new(meta.clone(), bench.blocks.clone(), bench.chunks.clone(), writers.clone(), SECOND);
            let own_streams = Arc::default();
            let ino = bench.world.file(0);
            let mut history = History(vec![(Vec::new(), Duration::MAX)]);
            // State as of the last stat, and answers to short objects that may still come.
            let (mut told, mut shorts, mut missing, mut refusals) = (0, 0, 0, 0);
            for (n, op) in ops.into_iter().enumerate() {
                // No two commits happen at once.
                bench.world.clock.advance(Duration::from_micros(1));
                let now = bench.world.clock.elapsed();
                match op {
                    Op::Write(at, len) => {
                        let data: Vec<u8> = (0..len).map(|i| (i % 251 + n + 1) as u8).collect();
                        let content = written(history.now(), at, &data);
                        writers.write(&Caller::root(), ino, at, Bytes::from(data)).await.unwrap();
                        while let Err(errno) = writers.flush(ino).await {
                            assert!(errno == Errno::NOSPC && refusals > 0, "{errno} in step {n}");
                            assert!(writers.is_dirty(ino), "what failed is kept");
                            refusals -= 1;
                        }
                        history.change(now, content);
                    }
                    Op::WriteAndRead(at, len, from) => {
                        let data: Vec<u8> = (0..len).map(|i| (i % 251 + n + 1) as u8).collect();
                        let content = written(history.now(), at, &data);
                        writers.write(&Caller::root(), ino, at, Bytes::from(data)).await.unwrap();
                        let bytes = loop {
                            match read(&own, &own_streams, ino, from, 500_000).await {
                                Ok(bytes) => break bytes,
                                Err(Errno::NOSPC) if refusals > 0 => refusals -= 1,
                                Err(errno) => {
                                    let damaged = shorts > 0 || missing > REREADS_MAX;
                                    assert!(errno == Errno::IO && damaged && !writers.is_dirty(ino), "{errno} in step {n}");
                                    bench.faults.heal();
                                }
                            }
                        };
                        assert!(part(&content, from, 500_000) == bytes, "the writer's host read {from} in step {n}");
                        history.change(now, content);
                    }
                    Op::PutFault(skip, unlucky) => {
                        let full = || ObjectError::Full("no room".into());
                        let fault = match unlucky {
                            Unlucky::Late => Fault::Slow(Duration::from_millis(2)),
                            Unlucky::Cut => Fault::Fail(ObjectError::Retry("cut".into())),
                            Unlucky::Lost => Fault::FailAfter(ObjectError::Retry("cut".into())),
                            Unlucky::Full => Fault::Fail(full()),
                            Unlucky::DoneAndFull => Fault::FailAfter(full()),
                        };
                        refusals += u32::from(matches!(unlucky, Unlucky::Full | Unlucky::DoneAndFull));
                        bench.faults.inject(Request::Put, skip, 1, fault);
                    }
                    Op::Truncate(length) => {
                        let mut content = history.now().to_vec();
                        content.resize(length as usize, 0);
                        meta.truncate(&Caller::root(), ino, length).await.unwrap();
                        history.change(now, content);
                    }
                    Op::Compact => {
                        // What goes wrong is meant for the reader.
                        let _ = bench.chunks.compact(ino, 0).await;
                    }
                    Op::Stat => {
                        let attr = host.meta.getattr(ino).await.unwrap();
                        assert_eq!(attr.length, history.now().len() as u64);
                        told = history.0.len() - 1;
                    }
                    Op::Wait(ms) => bench.world.clock.advance(Duration::from_millis(ms)),
                    Op::Fault(skip, wrong) => {
                        let fault = match wrong {
                            Wrong::Late => Fault::Slow(Duration::from_millis(2)),
                            Wrong::Cut => Fault::Fail(ObjectError::Retry("cut".into())),
                            Wrong::Short => {
                                shorts += 1;
                                Fault::Short(10)
                            }
                            Wrong::Missing => {
                                missing += 1;
                                Fault::Fail(ObjectError::Missing)
                            }
                        };
                        bench.faults.inject(Request::Get, skip, 1, fault);
                    }
                    Op::Read(at, len) => match host.read(ino, at, len).await {
                        Ok(bytes) => {
                            let found = history.allowed(now, told).any(|content| part(content, at, len) == bytes);
                            assert!(found, "read {at}+{len} in step {n}");
                        }
                        // Three objects missing one after the other, or one that is not whole.
                        Err(errno) => {
                            assert!(errno == Errno::IO && (shorts > 0 || missing > REREADS_MAX), "{errno} in step {n}")
                        }
                    },
                }
            }
            // All is well again: the bytes as they are.
            bench.faults.heal();
            bench.world.clock.advance(2 * SECOND);
            assert!(host.read(ino, 0, FILE_BYTES).await.unwrap() == history.now());
        });
    }
}
