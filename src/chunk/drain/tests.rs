//! Draining, interrupted at every place.

use super::*;
use crate::block::{BlockConfig, BlockStore, Codec, Compression};
use crate::cache::MemoryCache;
use crate::chunk::testing::{BLOCK_BYTES, Bench};
use crate::meta::ops::chunk::testing::slice;
use crate::meta::store::Write;
use crate::object::ObjectError;
use crate::object::fault::{Fault, Request};
use crate::types::{BlockId, Ino, SliceRecord};

/// What a reader sees that has the list and nothing in memory.
async fn read(bench: &Bench, record: SliceRecord) -> Vec<u8> {
    bench.chunks.read(&[record], 0..record.len).await.unwrap().concat()
}

fn record(id: SliceId, size: u32) -> SliceRecord {
    SliceRecord { pos: 0, id, size, off: 0, len: size }
}

async fn drain(bench: &Bench, id: SliceId, size: Option<u32>) -> Drained {
    bench.chunks.drain_frames(&[(id, size)]).await.unwrap()
}

fn only(id: SliceId, stored: u64, bytes: u64) -> Drained {
    Drained { done: [id].into(), stored, bytes, failed: None }
}

#[tokio::test]
async fn a_frame_becomes_an_object() {
    for size in [None, Some(100)] {
        let bench = Bench::new(0);
        let ino = bench.world.file(0);
        let small = bench.write(ino, 0, 5, 100).await;
        assert!(bench.world.frame(small).is_some() && bench.memory.objects().is_empty());
        assert_eq!(drain(&bench, small, size).await, only(small, 1, 100));
        let objects = bench.memory.objects();
        assert_eq!(objects.keys().collect::<Vec<_>>(), [&format!("vol/chunks/0/0/{small}_0_100")]);
        assert_eq!(bench.world.frame(small), None);
        assert_eq!(drain(&bench, small, size).await, only(small, 0, 0), "there is none any more");
        // The list that names it was read before, and the reader asks for the frame after it went.
        assert_eq!(read(&bench, record(small, 100)).await, bench.pattern(small, 100));
    }
}

#[tokio::test]
async fn coded_frames_tell_their_size() {
    for compression in [Compression::Lz4, Compression::Zstd] {
        let bench = Bench::new(0);
        let config = |codec| BlockConfig {
            objects: bench.faults.clone(),
            prefix: "vol".into(),
            hash_prefix: false,
            block_bytes: BLOCK_BYTES,
            codec,
            cache: MemoryCache::new(0),
            disk: None,
            frames: bench.world.meta.clone(),
            tuning: Default::default(),
        };
        let blocks = BlockStore::new(config(Codec::new(compression, None)));
        let data = bench.pattern(7, 65_536);
        bench.world.store.put(Write::PutFrame(7, blocks.encode(&data).await.unwrap()));
        bench.world.store.put(Write::PutFrame(8, "no frame of that kind".into()));
        let chunks = Chunks::new(bench.world.meta.clone(), blocks.clone());
        let drained = chunks.drain_frames(&[(7, None), (8, None)]).await.unwrap();
        assert_eq!((drained.stored, drained.failed), (1, Some(Errno::IO)), "the others go on");
        assert!(bench.world.frame(8).is_some(), "what is damaged stays for somebody to look at");
        let whole = chunks.read(&[record(7, 65_536)], 0..65_536).await.unwrap().concat();
        assert!(whole == data);
        assert!(bench.memory.objects().contains_key("vol/chunks/0/0/7_0_65536"));
    }
}

/// Every place where a drainer can be interrupted: at each the bytes are there, and whoever drains next brings it to its end.
#[tokio::test]
async fn a_crash_anywhere_loses_nothing() {
    let gone = || Fault::Fail(ObjectError::Denied("the host is gone".into()));
    // Before the object is stored.
    let bench = Bench::new(0);
    let ino = bench.world.file(0);
    let small = bench.write(ino, 0, 0, 100).await;
    bench.faults.inject(Request::Put, 0, 1, gone());
    let drained = drain(&bench, small, None).await;
    assert_eq!((drained.stored, drained.failed, drained.done.len()), (0, Some(Errno::IO), 0));
    assert!(bench.memory.objects().is_empty());
    assert_eq!(read(&bench, record(small, 100)).await, bench.pattern(small, 100));
    // Between the object and the commit that removes the frame: both are there.
    bench.blocks.store_frame(small, Some(100), bench.world.frame(small).unwrap()).await.unwrap();
    assert!(bench.world.frame(small).is_some() && bench.memory.objects().len() == 1);
    assert_eq!(read(&bench, record(small, 100)).await, bench.pattern(small, 100));
    // Another one goes on, and one that was only slow comes last.
    assert_eq!(drain(&bench, small, None).await, only(small, 1, 100));
    bench.world.meta.drop_frames([small]).await.unwrap();
    assert_eq!(read(&bench, record(small, 100)).await, bench.pattern(small, 100));
    assert_eq!(bench.memory.objects().len(), 1);
}

#[tokio::test]
async fn a_drainer_that_was_asleep_deletes_nothing() {
    let bench = Bench::new(0);
    let ino = bench.world.file(0);
    let small = bench.write(ino, 0, 0, 100).await;
    let (meta, chunks) = (bench.world.neighbour(), bench.chunks.clone());
    // Another host drains it completely between this one's upload and its commit.
    let other = Chunks::new(meta, bench.blocks.clone());
    bench.world.store.before_commit(move || {
        let drained = crate::meta::ops::chunk::testing::ready(other.drain_frames(&[(small, None)])).unwrap();
        assert_eq!(drained.stored, 1);
    });
    chunks.drain_frames(&[(small, None)]).await.unwrap();
    assert_eq!(read(&bench, record(small, 100)).await, bench.pattern(small, 100));
}

#[tokio::test]
async fn what_is_deleted_meanwhile_is_garbage_at_most() {
    let bench = Bench::new(0);
    let (ino, kept) = (bench.world.file(0), bench.world.file(0));
    let small = bench.write(ino, 0, 0, 100).await;
    let copied = bench.write(ino, 1, 0, 200).await;
    bench.world.meta.copy_range(&crate::types::Caller::root(), ino, 1 << 26, kept, 0, 200).await.unwrap();
    bench.world.unlink(ino);
    bench.chunks.delete_file(ino, 300).await.unwrap();
    // The last record took its frame along; a copy keeps its own.
    assert_eq!(bench.world.frame(small), None);
    assert_eq!(bench.chunks.drain_all().await, Ok(1));
    assert_eq!(bench.memory.objects().keys().collect::<Vec<_>>(), [&format!("vol/chunks/0/0/{copied}_0_200")]);
    assert_eq!(read(&bench, record(copied, 200)).await, bench.pattern(copied, 200));
}

#[tokio::test]
async fn all_that_is_there_and_no_more() {
    let bench = Bench::new(0);
    let ino = bench.world.file(0);
    for _ in 0..2 * DRAINED_MAX + 3 {
        bench.write(ino, 0, 0, 10).await;
    }
    let world = &bench.world;
    assert_eq!(world.meta.look_at_journal().await.unwrap().count, 2 * DRAINED_MAX as u64 + 3);
    let store = world.store.clone();
    // What comes while it runs is the next one's.
    world.store.before_commit(move || store.put(Write::PutFrame(u64::MAX >> 1, "late".into())));
    assert_eq!(bench.chunks.drain_all().await, Ok(2 * DRAINED_MAX as u64 + 3));
    assert_eq!(world.meta.look_at_journal().await.unwrap().count, 1);
    assert_eq!(bench.memory.objects().len(), 2 * DRAINED_MAX + 3);
}

#[tokio::test]
async fn a_slice_that_was_committed_in_both_ways_reads_the_same() {
    // The answer of a commit was lost for good; its frame was drained, and the writer tried again with the frame.
    let bench = Bench::new(0);
    let ino: Ino = bench.world.file(0);
    let small = bench.write(ino, 0, 0, 100).await;
    assert_eq!(drain(&bench, small, None).await.stored, 1);
    let again = crate::meta::ops::write::NewSlice { frame: Some(bench.pattern(small, 100)), ..slice(0, small, 100) };
    bench.world.meta.write(ino, 0, &[again], bench.world.now()).await.unwrap();
    assert_eq!(bench.content(ino, 0).await, bench.pattern(small, 100));
    assert_eq!(drain(&bench, small, None).await.stored, 1);
    assert_eq!(bench.content(ino, 0).await, bench.pattern(small, 100));
}

/// Writers, drainers that die or sleep at any place, copies and deletions, in any order: what a file holds is there after each step.
#[tokio::test]
async fn any_order_of_crashes_keeps_every_byte() {
    // Ten thousand kills in the long runs.
    let (seeds, steps) = if std::env::var_os("PANDO_SOAK").is_some() { (60, 1000) } else { (3, 250) };
    let mut kills = 0;
    for seed in 1..=seeds {
        let bench = Bench::new(0);
        let world = &bench.world;
        let mut state = 0x9E37_79B9_7F4A_7C15u64.wrapping_mul(seed);
        let mut below = move |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 11) % n as u64) as usize
        };
        let mut files: Vec<(Ino, Vec<u8>)> = (0..4).map(|_| (world.file(0), Vec::new())).collect();
        let mut slices: Vec<(SliceId, u32)> = Vec::new();
        let mut asleep = Vec::new();
        for step in 0..steps {
            let (at, other) = (below(files.len()), below(files.len()));
            let ino = files[at].0;
            match below(8) {
                0..=2 => {
                    let len = 1 + below(2000) as u32;
                    let id = bench.write(ino, 0, files[at].1.len() as u32, len).await;
                    files[at].1.extend_from_slice(&bench.pattern(id, len));
                    slices.push((id, len));
                }
                3 if !slices.is_empty() => {
                    // Some puts of a batch fail, and perhaps nobody knew the sizes.
                    let some: Vec<_> = (0..4).map(|_| slices[below(slices.len())]).collect();
                    let known = below(2) == 0;
                    let batch: std::collections::BTreeMap<_, _> = some.into_iter().map(|(id, len)| (id, known.then_some(len))).collect();
                    bench.faults.inject(Request::Put, below(3) as u32, 1, Fault::Fail(ObjectError::Denied("gone".into())));
                    bench.chunks.drain_frames(&batch.into_iter().collect::<Vec<_>>()).await.unwrap();
                    bench.faults.heal();
                    kills += 1;
                }
                4 if !slices.is_empty() => {
                    // One dies after its put, or sleeps before it.
                    let (id, len) = slices[below(slices.len())];
                    if let Some(frame) = world.frame(id) {
                        kills += 1;
                        if below(2) == 0 {
                            bench.blocks.store_frame(id, Some(len), frame).await.unwrap();
                        } else {
                            asleep.push((id, len, frame));
                        }
                    }
                }
                5 if !asleep.is_empty() => {
                    let (id, len, frame) = asleep.swap_remove(below(asleep.len()));
                    bench.blocks.store_frame(id, Some(len), frame).await.unwrap();
                    world.meta.drop_frames([id]).await.unwrap();
                }
                6 if at != other && !files[at].1.is_empty() => {
                    let (from, to) = (files[at].clone(), &mut files[other]);
                    let (root, end, len) = (crate::types::Caller::root(), to.1.len() as u64, from.1.len() as u64);
                    world.meta.copy_range(&root, from.0, 0, to.0, end, len).await.unwrap();
                    to.1.extend_from_slice(&from.1);
                }
                7 if below(4) == 0 => {
                    let length = files[at].1.len() as u64;
                    world.unlink(ino);
                    bench.chunks.delete_file(ino, length).await.unwrap();
                    files[at] = (world.file(0), Vec::new());
                }
                _ => {}
            }
            for (ino, content) in &files {
                assert!(bench.content(*ino, 0).await == *content, "seed {seed}, step {step}");
            }
            // Copies double the files; they begin anew before a chunk is full.
            for file in files.iter_mut().filter(|(_, content)| content.len() > 50_000) {
                *file = (world.file(0), Vec::new());
            }
        }
        bench.chunks.drain_all().await.unwrap();
        assert_eq!(world.meta.look_at_journal().await.unwrap(), Default::default());
        for (ino, content) in &files {
            assert!(bench.content(*ino, 0).await == *content, "seed {seed}");
        }
        // What a drainer that slept has left behind has the name of the block that was written, so that whoever cleans up finds it.
        for name in bench.memory.objects().keys() {
            let block = name.rsplit('/').next().and_then(BlockId::parse).expect("a block");
            assert!(block.index == 0 && slices.contains(&(block.slice, block.len)), "seed {seed}: {name}");
        }
    }
    println!("{kills} drainers were killed");
    assert!(kills > seeds * steps / 8);
}
