//! `killed`: when the process behind a request is being killed.
//!
//! The kernel tells of the first signal of a waiting process and of no later one, and most signals do not end a process: it asks for its answer
//! all the same, and few programs expect EINTR from `stat`. So an interrupted request looks whether the thread that made it has been sent what
//! nobody survives. Every fatal signal is SIGKILL to each thread of a process by then.

use crate::types::Cancel;
use std::time::Duration;

/// How often an interrupted request looks again: a fraction of the second in which who is killed is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// SIGKILL in the masks of `/proc/…/status`.
const KILL_BIT: u64 = 1 << (libc::SIGKILL - 1);

/// Returns once the thread (0: none) that waits for a request is being killed; never otherwise.
pub(crate) async fn killed(cancel: &Cancel, thread: u32) {
    cancel.cancelled().await;
    while !is_dying(thread) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// A file that the system makes in memory: reading it does not wait.
fn is_dying(thread: u32) -> bool {
    thread != 0 && std::fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|status| has_kill(&status))
}

fn has_kill(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:")));
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & KILL_BIT != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_survives_counts() {
        for (status, dying) in [
            ("Name:\tcat\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n", true),
            ("SigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n", true),
            ("SigPnd:\t0000000000004002\nShdPnd:\t0000000000000000\nSigBlk:\tffffffffffffffff\n", false),
            ("SigPnd:\tno number\n", false),
            ("", false),
        ] {
            assert_eq!(has_kill(status), dying, "{status}");
        }
        assert!(!is_dying(std::process::id()) && !is_dying(0) && !is_dying(u32::MAX));
    }
}
