//! What the process counts, under the names and in the units of JuiceFS's dashboards (cli §9). A process serves one mount, so all of it is the
//! process's own. Counting costs some tens of nanoseconds and never waits for who looks.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

/// Most buckets of a histogram here.
const BUCKETS_MAX: usize = 32;

/// Something that only grows.
pub struct Counter(AtomicU64);

impl Counter {
    /// So much more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

/// Something that is under way.
pub struct UnderWay(AtomicI64);

impl UnderWay {
    /// One more, until what is returned is dropped.
    pub fn enter(&'static self) -> impl Drop {
        self.0.fetch_add(1, Ordering::Relaxed);
        Entered(self)
    }
}

struct Entered(&'static UnderWay);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How the bounds of the buckets follow each other.
enum Steps {
    /// By a factor.
    Times(f64),
    /// By a difference.
    Plus(f64),
}

/// How often values of which size occurred.
pub struct Histogram {
    first: f64,
    steps: Steps,
    buckets: usize,
    bounds: OnceLock<Vec<f64>>,
    counts: [AtomicU64; BUCKETS_MAX],
    count: AtomicU64,
    /// In nanoseconds, or in bytes.
    sum: AtomicU64,
    /// How many of these make one of the unit that is shown.
    scale: f64,
}

impl Histogram {
    const fn new(first: f64, steps: Steps, buckets: usize, scale: f64) -> Histogram {
        let (count, sum) = (AtomicU64::new(0), AtomicU64::new(0));
        Histogram { first, steps, buckets, bounds: OnceLock::new(), counts: [const { AtomicU64::new(0) }; BUCKETS_MAX], count, sum, scale }
    }

    const fn of_seconds(first: f64, factor: f64, buckets: usize) -> Histogram {
        Histogram::new(first, Steps::Times(factor), buckets, 1e9)
    }

    fn bounds(&self) -> &[f64] {
        self.bounds.get_or_init(|| {
            let bound = |n: usize| match self.steps {
                Steps::Times(factor) => self.first * factor.powi(i32::try_from(n).unwrap_or(i32::MAX)),
                Steps::Plus(step) => self.first + step * n as f64,
            };
            (0..self.buckets).map(bound).collect()
        })
    }

    fn note(&self, value: u64) {
        let shown = value as f64 / self.scale;
        if let Some(count) = self.counts[..self.buckets].get(self.bounds().partition_point(|bound| *bound < shown)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Notes a time.
    pub fn time(&self, time: Duration) {
        self.note(nanoseconds(time));
    }

    /// Notes a number of bytes.
    pub fn bytes(&self, bytes: u64) {
        self.note(bytes);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts, each under a word: a method, an error. Words are those of the program, so there are few.
pub struct Words(Mutex<BTreeMap<&'static str, (u64, u64)>>);

impl Words {
    const fn new() -> Words {
        Words(Mutex::new(BTreeMap::new()))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, (u64, u64)>> {
        self.0.lock().expect("never poisoned: no code under it panics")
    }

    /// So many more, which amount to so much.
    pub fn add(&self, word: &'static str, count: u64, amount: u64) {
        let mut all = self.all();
        let (counted, amounted) = all.entry(word).or_default();
        *counted += count;
        *amounted += amount;
    }
}

/// Operations of one kind: how long they take, and which they are.
pub struct Operations {
    durations: Histogram,
    methods: Words,
}

impl Operations {
    /// One has ended.
    pub fn done(&self, method: &'static str, time: Duration) {
        self.durations.time(time);
        self.methods.add(method, 1, nanoseconds(time));
    }
}

/// Requests of the kernel.
pub static FUSE: Operations = Operations { durations: Histogram::of_seconds(1e-5, 1.8, 29), methods: Words::new() };
/// Requests of the kernel that ended in an error, by its number.
pub static FUSE_ERRORS: Words = Words::new();
/// Bytes of reads of the kernel.
pub static FUSE_READ: Histogram = Histogram::new(4096.0, Steps::Plus(4096.0), 32, 1.0);
/// Bytes of its writes.
pub static FUSE_WRITTEN: Histogram = Histogram::new(4096.0, Steps::Plus(4096.0), 32, 1.0);
/// Operations on the metadata.
pub static META: Operations = Operations { durations: Histogram::of_seconds(1e-4, 1.5, 30), methods: Words::new() };
/// Commits to the metadata store.
pub static TRANSACTIONS: Histogram = Histogram::of_seconds(1e-4, 1.5, 30);
/// Operations that met somebody else's change and began anew.
pub static RESTARTS: Words = Words::new();
/// Requests to the bucket: GET, PUT, DELETE.
pub static OBJECTS: [(&str, Histogram); 3] = [
    ("GET", Histogram::of_seconds(0.01, 1.5, 25)),
    ("PUT", Histogram::of_seconds(0.01, 1.5, 25)),
    ("DELETE", Histogram::of_seconds(0.01, 1.5, 25)),
];
/// Bytes of objects, by method.
pub static OBJECT_BYTES: Words = Words::new();
/// Requests to the bucket that failed.
pub static OBJECT_ERRORS: Counter = Counter(AtomicU64::new(0));
/// Blocks on their way to the bucket.
pub static UPLOADING: UnderWay = UnderWay(AtomicI64::new(0));
/// Bytes that compactions wrote.
pub static COMPACTED: Histogram = Histogram::new(1024.0, Steps::Times(2.0), 16, 1.0);

/// A request to the bucket has ended, well or not.
pub fn object(method: &'static str, time: Duration, bytes: u64, failed: bool) {
    if let Some((_, histogram)) = OBJECTS.iter().find(|(name, _)| *name == method) {
        histogram.time(time);
    }
    if failed {
        OBJECT_ERRORS.add(1);
    } else if bytes > 0 {
        OBJECT_BYTES.add(method, 1, bytes);
    }
}

/// Something that is looked up when somebody asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Without the prefix.
    pub name: &'static str,
    /// Whether it only grows.
    pub counter: bool,
    /// The value.
    pub value: f64,
}

impl Reading {
    /// A value that goes up and down.
    pub fn gauge(name: &'static str, value: impl Into<f64>) -> Reading {
        Reading { name, counter: false, value: value.into() }
    }

    /// A whole number that only grows.
    pub fn counter(name: &'static str, value: u64) -> Reading {
        Reading { name, counter: true, value: value as f64 }
    }
}

/// The text of Prometheus, version 0.0.4. `labels` stand at every value.
pub struct Page {
    text: String,
    labels: String,
}

impl Page {
    /// With these labels at every value.
    pub fn new(labels: &[(String, String)]) -> Page {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        Page { text: String::new(), labels: labels.join(",") }
    }

    fn kind(&mut self, name: &str, kind: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# TYPE juicefs_{name} {kind}");
    }

    fn value(&mut self, name: &str, more: &str, value: f64) {
        let comma = if self.labels.is_empty() || more.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "juicefs_{name}{{{}{comma}{more}}} {value}", self.labels);
    }

    /// One value.
    pub fn reading(&mut self, reading: &Reading) {
        self.kind(reading.name, if reading.counter { "counter" } else { "gauge" });
        self.value(reading.name, "", reading.value);
    }

    fn histogram(&mut self, name: &str, more: &str, histogram: &Histogram) {
        let comma = if more.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bound, count) in histogram.bounds().iter().zip(&histogram.counts) {
            below += count.load(Ordering::Relaxed);
            self.value(&format!("{name}_bucket"), &format!("{more}{comma}le=\"{bound}\""), below as f64);
        }
        // Read after the buckets, and no less than they: somebody may be counting.
        let count = histogram.count.load(Ordering::Relaxed).max(below);
        self.value(&format!("{name}_bucket"), &format!("{more}{comma}le=\"+Inf\""), count as f64);
        self.value(&format!("{name}_sum"), more, histogram.sum.load(Ordering::Relaxed) as f64 / histogram.scale);
        self.value(&format!("{name}_count"), more, count as f64);
    }

    fn words(&mut self, name: &str, label: &str, words: &Words, pick: impl Fn((u64, u64)) -> f64) {
        let all = words.all().clone();
        if !all.is_empty() {
            self.kind(name, "counter");
        }
        for (word, counted) in all {
            self.value(name, &format!("{label}=\"{}\"", escaped(word)), pick(counted));
        }
    }

    /// Everything the process counts.
    pub fn counted(&mut self) {
        let (count, seconds): (fn((u64, u64)) -> f64, fn((u64, u64)) -> f64) = (|(n, _)| n as f64, |(_, ns)| ns as f64 / 1e9);
        for (name, histogram) in [
            ("fuse_ops_durations_histogram_seconds", &FUSE.durations),
            ("fuse_read_size_bytes", &FUSE_READ),
            ("fuse_written_size_bytes", &FUSE_WRITTEN),
            ("meta_ops_durations_histogram_seconds", &META.durations),
            ("transaction_durations_histogram_seconds", &TRANSACTIONS),
            ("compact_size_histogram_bytes", &COMPACTED),
        ] {
            self.kind(name, "histogram");
            self.histogram(name, "", histogram);
        }
        self.words("fuse_ops_total", "method", &FUSE.methods, count);
        self.words("fuse_ops_durations_seconds", "method", &FUSE.methods, seconds);
        self.words("fuse_ops_io_errors", "errno", &FUSE_ERRORS, count);
        self.words("meta_ops_total", "method", &META.methods, count);
        self.words("meta_ops_duration_seconds", "method", &META.methods, seconds);
        self.words("transaction_restart", "method", &RESTARTS, count);
        self.kind("object_request_durations_histogram_seconds", "histogram");
        for (method, histogram) in &OBJECTS {
            self.histogram("object_request_durations_histogram_seconds", &format!("method=\"{method}\",storage_class=\"\""), histogram);
        }
        self.words("object_request_data_bytes", "method", &OBJECT_BYTES, |(_, bytes)| bytes as f64);
        self.reading(&Reading::counter("object_request_errors", OBJECT_ERRORS.0.load(Ordering::Relaxed)));
        self.reading(&Reading::gauge("object_request_uploading", UPLOADING.0.load(Ordering::Relaxed) as f64));
    }

    /// The text.
    pub fn text(self) -> String {
        self.text
    }
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What the system says about this process: times in seconds, memory in bytes.
pub fn of_process(uptime: Duration) -> Vec<Reading> {
    let mut readings = vec![Reading::gauge("uptime", uptime.as_secs_f64())];
    // SAFETY: `rusage` is plain old data, for which all zeros are a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a live local.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } == 0 {
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
        let cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
        readings.push(Reading::gauge("cpu_usage", cpu));
        readings.push(Reading { name: "process_cpu_seconds_total", counter: true, value: cpu });
    }
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as f64;
    if let Ok(text) = std::fs::read_to_string("/proc/self/statm") {
        let mut pages = text.split(' ').map(|n| n.parse::<f64>().unwrap_or(0.0) * page);
        if let (Some(virtual_bytes), Some(resident)) = (pages.next(), pages.next()) {
            readings.push(Reading::gauge("memory", resident));
            readings.push(Reading::gauge("process_resident_memory_bytes", resident));
            readings.push(Reading::gauge("process_virtual_memory_bytes", virtual_bytes));
        }
    }
    if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
        readings.push(Reading::gauge("process_open_fds", files.count() as f64));
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: impl FnOnce(&mut Page)) -> String {
        let mut page = Page::new(&[("mp".into(), "/a \"b\"".into())]);
        fill(&mut page);
        page.text()
    }

    #[test]
    fn a_histogram_counts_up_to_each_bound() {
        let histogram = Histogram::of_seconds(1e-5, 1.8, 29);
        for micros in [1, 10, 11, 17, 1_000_000_000] {
            histogram.time(Duration::from_micros(micros));
        }
        let text = page(|page| page.histogram("h", "", &histogram));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "juicefs_h_bucket{mp=\"/a \\\"b\\\"\",le=\"0.00001\"} 2");
        assert!(lines[1].ends_with("le=\"0.000018000000000000004\"} 4") || lines[1].ends_with("le=\"0.000018\"} 4"), "{}", lines[1]);
        assert_eq!(lines.len(), 29 + 3);
        assert!(lines[28].ends_with("} 4") && lines[29].ends_with("le=\"+Inf\"} 5"));
        assert!(lines[30].starts_with("juicefs_h_sum") && lines[30].contains("1000.0000"), "{}", lines[30]);
        assert!(lines[31].starts_with("juicefs_h_count") && lines[31].ends_with(" 5"));
    }

    #[test]
    fn words_are_values_of_a_label() {
        let words = Words::new();
        words.add("read", 2, 3_000_000_000);
        words.add("write", 1, 0);
        words.add("read", 1, 0);
        let text = page(|page| page.words("w", "method", &words, |(n, ns)| n as f64 + ns as f64 / 1e9));
        let mp = "mp=\"/a \\\"b\\\"\"";
        assert_eq!(text, format!("# TYPE juicefs_w counter\njuicefs_w{{{mp},method=\"read\"}} 6\njuicefs_w{{{mp},method=\"write\"}} 1\n"));
    }

    #[test]
    fn the_names_are_those_of_the_dashboard() {
        object("GET", Duration::from_millis(20), 4096, false);
        object("PUT", Duration::from_millis(20), 4096, true);
        let text = page(|page| {
            page.counted();
            of_process(Duration::from_secs(5)).iter().for_each(|reading| page.reading(reading));
        });
        for name in [
            "fuse_ops_durations_histogram_seconds_sum",
            "fuse_read_size_bytes_sum",
            "fuse_written_size_bytes_sum",
            "transaction_durations_histogram_seconds_count",
            "compact_size_histogram_bytes_sum",
            "object_request_errors",
            "cpu_usage",
            "memory",
            "uptime",
        ] {
            assert!(text.lines().any(|line| line.starts_with(&format!("juicefs_{name}{{"))), "{name} is not in {text}");
        }
        assert!(text.contains("juicefs_object_request_data_bytes{mp=\"/a \\\"b\\\"\",method=\"GET\"} "));
        assert!(text.contains("method=\"GET\",storage_class=\"\",le=\"0.01\"} "));
        let memory = text.lines().find(|line| line.starts_with("juicefs_memory{")).and_then(|line| line.rsplit(' ').next()).unwrap();
        assert!(memory.parse::<f64>().unwrap() > 1e6, "{memory}");
        // Each name has one type, told before its values.
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with('#')).collect();
        let mut once = types.clone();
        once.dedup();
        assert_eq!(types.len(), once.len());
    }
}
