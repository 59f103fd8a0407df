//! Reading and writing together, on real metadata and blocks in memory, against a vector of bytes; and what a reader does about
//! compaction, deletion and a slow bucket.

use crate::block::{BlockConfig, BlockStore, Tuning};
use crate::cache::MemoryCache;
use crate::chunk::Chunks;
use crate::chunk::testing::{BLOCK_BYTES, Bench};
use crate::env::Share;
use crate::meta::key;
use crate::meta::store::Write;
use crate::object::ObjectError;
use crate::object::fault::{Fault, Request};
use crate::types::{BlockId, CHUNK_BYTES, Caller, Errno, Ino};
use crate::vfs::reader::{Reader, Source, Streams};
use crate::vfs::writer::{Writers, WritersConfig};
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

struct Volume {
    bench: Bench,
    writers: Arc<Writers>,
    reader: Reader,
    streams: Arc<Streams>,
}

impl Volume {
    fn new(cache_bytes: u64) -> Volume {
        let bench = Bench::new(cache_bytes);
        let (meta, blocks) = (bench.world.meta.clone(), bench.blocks.clone());
        let writers = Writers::new(WritersConfig { meta: meta.clone(), blocks: blocks.clone(), memory: Share::alone(4 << 20) });
        let reader = Reader::new(meta, blocks, bench.chunks.clone(), writers.clone(), Duration::from_secs(1));
        Volume { bench, writers, reader, streams: Arc::default() }
    }

    async fn write(&self, ino: Ino, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.writers.write(&Caller::root(), ino, at, Bytes::copy_from_slice(data)).await
    }

    async fn read(&self, ino: Ino, at: u64, len: u64) -> Result<Vec<u8>, Errno> {
        let length = self.bench.world.find(ino).map_or(10, |attr| attr.length);
        let source = Source { ino, length, streams: &self.streams };
        Ok(self.reader.read(&Caller::root(), source, at..at + len).await?.concat())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, usize),
    Append(usize),
    Read(u64, u64),
    Flush,
    /// The next put of an object, or the one after, fails.
    FullDisk(u32),
}

/// Offsets near the start of the file and on both sides of a chunk border.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..600_000, CHUNK_BYTES - 300_000..CHUNK_BYTES + 300_000]
}

fn op() -> impl Strategy<Value = Op> {
    let len = || prop_oneof![1usize..100, 1usize..400_000];
    prop_oneof![
        6 => (offset(), len()).prop_map(|(at, len)| Op::Write(at, len)),
        1 => len().prop_map(Op::Append),
        3 => (offset(), 1u64..400_000).prop_map(|(at, len)| Op::Read(at, len)),
        1 => Just(Op::Flush),
        1 => (0u32..2).prop_map(Op::FullDisk),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn reads_what_was_written(ops in prop::collection::vec(op(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let volume = Volume::new(1 << 20);
            let ino = volume.bench.world.file(0);
            // Sparse, because of the chunk border: the two stretches that are written, and the length.
            let mut model = vec![0u8; (CHUNK_BYTES + 2_000_000) as usize];
            let mut length = 0u64;
            for (n, op) in ops.into_iter().enumerate() {
                let data = |len: usize| (0..len).map(|i| (i % 251 + n + 1) as u8).collect::<Vec<u8>>();
                match op {
                    Op::Write(at, len) => {
                        let data = data(len);
                        // A failure in the background is told to a write, which then has not happened; the one after it goes on.
                        while let Err(errno) = volume.write(ino, at, &data).await {
                            assert_eq!(errno, Errno::NOSPC);
                        }
                        model[at as usize..at as usize + len].copy_from_slice(&data);
                        length = length.max(at + len as u64);
                    }
                    Op::Append(len) => {
                        let data = data(len);
                        match volume.writers.append(&Caller::root(), ino, data.clone().into()).await {
                            Ok(at) => {
                                assert_eq!(at, length);
                                model.resize(model.len().max(at as usize + len), 0);
                                model[at as usize..at as usize + len].copy_from_slice(&data);
                                length = at + len as u64;
                            }
                            Err(errno) => assert_eq!(errno, Errno::NOSPC),
                        }
                    }
                    Op::Read(at, len) => match volume.read(ino, at, len).await {
                        Ok(bytes) => {
                            let end = length.min(at + len).max(at);
                            assert!(bytes == model[at as usize..end as usize], "read {at}+{len} in step {n}");
                        }
                        Err(errno) => assert_eq!(errno, Errno::NOSPC),
                    },
                    Op::Flush => {
                        // Its failure keeps the data.
                        let _ = volume.writers.flush(ino).await;
                    }
                    Op::FullDisk(skip) => volume.bench.faults.inject(Request::Put, skip, 1, Fault::Fail(ObjectError::Full("test".into()))),
                }
                let mut attr = volume.bench.world.attr(ino);
                volume.writers.overlay(ino, &mut attr);
                assert_eq!(attr.length, length);
            }
            volume.bench.faults.heal();
            volume.writers.flush(ino).await.unwrap();
            assert_eq!(volume.bench.world.attr(ino).length, length);
            // Another process, with nothing in memory, sees the same.
            for at in [0, CHUNK_BYTES - 400_000] {
                let len = 1_200_000.min(length.saturating_sub(at));
                assert!(volume.read(ino, at, len).await.unwrap() == model[at as usize..(at + len) as usize]);
            }
        });
    }
}

#[tokio::test]
async fn a_missing_object_means_read_the_list_again() {
    let volume = Volume::new(0);
    let ino = volume.bench.world.file(0);
    let data = vec![7; BLOCK_BYTES as usize];
    volume.write(ino, 0, &data).await.unwrap();
    volume.writers.flush(ino).await.unwrap();
    volume.bench.faults.inject(Request::Get, 0, 2, Fault::Fail(ObjectError::Missing));
    assert_eq!(volume.read(ino, 0, 100).await.unwrap(), data[..100]);
    volume.bench.faults.always(Request::Get, Fault::Fail(ObjectError::Missing));
    assert_eq!(volume.read(ino, 0, 100).await, Err(Errno::IO));
    // The handle is none the worse for it.
    volume.bench.faults.heal();
    assert_eq!(volume.read(ino, 0, 100).await.unwrap(), data[..100]);
}

#[tokio::test]
async fn a_file_deleted_elsewhere_is_readable_for_a_minute_and_then_stale() {
    let volume = Volume::new(0);
    let ino = volume.bench.world.file(0);
    volume.write(ino, 0, b"0123456789").await.unwrap();
    volume.writers.flush(ino).await.unwrap();
    let now = volume.bench.world.now().sec;
    volume.bench.world.store.put(Write::Del(key::inode(ino)));
    assert_eq!(volume.read(ino, 0, 100).await, Err(Errno::STALE), "no mark: somebody has reclaimed it, or it never was");
    volume.bench.world.store.put(Write::ZAdd(key::DELFILES, now, key::delfile(ino, 10)));
    assert_eq!(volume.read(ino, 2, 100).await.unwrap(), b"23456789");
    volume.bench.world.store.put(Write::ZAdd(key::DELFILES, now - 60, key::delfile(ino, 10)));
    assert_eq!(volume.read(ino, 2, 100).await, Err(Errno::STALE));
    // Whoever writes to it is told when it would have been committed, once.
    volume.write(ino, 0, b"x").await.unwrap();
    assert_eq!(volume.writers.flush(ino).await, Err(Errno::NOENT));
    assert_eq!(volume.writers.flush(ino).await, Ok(()));
}

#[tokio::test]
async fn a_slow_read_can_be_called_off() {
    let volume = Volume::new(0);
    let ino = volume.bench.world.file(0);
    volume.write(ino, 0, &vec![7; BLOCK_BYTES as usize]).await.unwrap();
    volume.writers.flush(ino).await.unwrap();
    volume.bench.faults.always(Request::Get, Fault::Hold(Arc::new(tokio::sync::Semaphore::new(0))));
    let caller = Caller::root();
    caller.cancel.cancel();
    assert_eq!(volume.reader.read(&caller, Source { ino, length: 1, streams: &volume.streams }, 0..1).await, Err(Errno::INTR));
}

#[tokio::test]
async fn blocks_behind_a_sequential_read_are_fetched_ahead() {
    let volume = Volume::new(64 << 20);
    let ino = volume.bench.world.file(0);
    let size = 20 * BLOCK_BYTES;
    let id = volume.bench.write(ino, 0, 0, size).await;
    // Another process: nothing in memory.
    let meta = volume.bench.world.neighbour();
    let blocks = BlockStore::new(BlockConfig {
        objects: volume.bench.memory.clone(),
        prefix: "vol".into(),
        hash_prefix: false,
        block_bytes: BLOCK_BYTES,
        codec: Default::default(),
        cache: MemoryCache::new(64 << 20),
        disk: None,
        frames: meta.clone(),
        tuning: Tuning { uploads_max: 1, downloads_max: 8, ..Tuning::default() },
    });
    let reader = Reader::new(meta.clone(), blocks.clone(), Chunks::new(meta, blocks.clone()), volume.writers.clone(), Duration::ZERO);
    for at in [0, 128 << 10, 256 << 10] {
        reader.read(&Caller::root(), Source { ino, length: 0, streams: &volume.streams }, at..at + (128 << 10)).await.unwrap();
    }
    let block = BlockId::of(id, size, 3, BLOCK_BYTES).unwrap();
    while blocks.cached(&block).is_none() {
        tokio::task::yield_now().await;
    }
}
