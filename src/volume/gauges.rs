//! `Gauges`: the page of metrics of a mount: what the process counts, and what is looked up when somebody asks.

use crate::block::BlockStore;
use crate::cache::DiskCache;
use crate::env::{Clock, SystemClock};
use crate::meta::Meta;
use crate::telemetry::metrics::{Page, Reading, of_process};
use crate::types::Ino;
use crate::vfs::writer::Writers;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the metadata store is waited for: who scrapes wants the rest, too, above all when the store is away.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a mount can be asked for.
pub struct Gauges {
    pub(super) meta: Arc<Meta>,
    pub(super) blocks: Arc<BlockStore>,
    pub(super) disk: Option<Arc<DiskCache>>,
    pub(super) writers: Arc<Writers>,
    pub(super) root: Ino,
    pub(super) labels: Vec<(String, String)>,
    pub(super) clock: SystemClock,
}

impl Gauges {
    /// The page in Prometheus's text format.
    pub async fn page(&self) -> String {
        let mut page = Page::new(&self.labels);
        for reading in self.readings().await {
            page.reading(&reading);
        }
        page.counted();
        page.text()
    }

    async fn readings(&self) -> Vec<Reading> {
        let mut readings = of_process(self.clock.elapsed());
        let mut gauge = |name, value: u64| readings.push(Reading::gauge(name, value as f64));
        if let Ok(Ok(stat)) = timeout(PATIENCE, self.meta.statfs(self.root, None)).await {
            gauge("used_space", stat.used);
            gauge("total_space", stat.total);
            gauge("used_inodes", stat.inodes_used);
            gauge("total_inodes", stat.inodes);
        }
        gauge("used_buffer_size_bytes", self.writers.held_bytes());
        gauge("store_cache_size_bytes", self.blocks.memory_bytes());
        gauge("fuse_open_handlers", self.meta.open_files().count());
        gauge("journal_bytes", self.meta.journal().bytes());
        if let Some(disk) = &self.disk {
            let stats = disk.stats();
            gauge("blockcache_blocks", stats.blocks);
            gauge("blockcache_bytes", stats.used_bytes);
            for (name, value) in [
                ("blockcache_hits", stats.hits),
                ("blockcache_miss", stats.misses),
                ("blockcache_writes", stats.writes),
                ("blockcache_drops", stats.drops),
                ("blockcache_evicts", stats.evictions),
                ("blockcache_hit_bytes", stats.hit_bytes),
                ("blockcache_miss_bytes", stats.miss_bytes),
                ("blockcache_write_bytes", stats.write_bytes),
            ] {
                readings.push(Reading::counter(name, value));
            }
            let staged = disk.staging().stats();
            readings.push(Reading::gauge("staging_blocks", staged.blocks as f64));
            readings.push(Reading::gauge("staging_block_bytes", staged.bytes as f64));
            readings.push(Reading::counter("staging_block_errors", staged.errors));
            readings.push(Reading::counter("staging_write_bytes", staged.written_bytes));
            readings.push(Reading { name: "staging_block_delay_seconds", counter: true, value: staged.delay_seconds as f64 });
        }
        readings
    }
}
