//! What commands that ask the process of a mount have in common.

use crate::cli::value;
use crate::daemon::{AskError, Last, locate};
use crate::telemetry::progress;
use serde_json::{Value, json};
use std::path::Path;

/// Most things done at once, as scripts know it.
pub const THREADS_MAX: usize = 255;

/// The option `--threads`.
pub fn threads(text: Option<&String>, default: usize) -> anyhow::Result<usize> {
    value("threads", text, default, |text| match text.parse() {
        Ok(n) if (1..=THREADS_MAX).contains(&n) => Ok(n),
        _ => Err(format!("a number from 1 to {THREADS_MAX} is wanted")),
    })
}

/// Asks the mount a path is in about it: `request` gets the path. What the mount tells of its progress is that of this process.
pub fn about(path: &str, last: Last, mut request: Value) -> Result<Value, AskError> {
    let inside = locate(Path::new(path), last)?;
    request["Path"] = json!(inside.path);
    inside.connect()?.ask(&request, &mut progress::set)
}
