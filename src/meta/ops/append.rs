//! Appending: data lands at the end of the file, wherever that is when the commit happens.
//!
//! The plan guards the inode's record, so appends conflict. Those of this process wait in a line of their own. Between hosts a conflict brings
//! the new end, and the next try takes one round trip; but a host that is near the store would always be faster than one that is far. So one
//! that was refused a few times takes a turn: a field that all appends of Pando guard. While it is there only its owner appends.

use crate::meta::client::Cx;
use crate::meta::lines::Lines;
use crate::meta::ops::write::{NewSlice, Written, append_step};
use crate::meta::store::{Guard, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Attr, CHUNK_BYTES, Caller, Errno, Ino, SliceRecord, Time, chunk_parts};
use bytes::Bytes;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tracing::{error, warn};

/// Times an append is tried before it takes a turn: two hosts at the same distance rarely need more.
const FREE_TRIES: u32 = 4;
/// Pause of those whose turn it is not; a turn lasts for two round trips.
const PAUSE: Duration = Duration::from_millis(2);
/// A turn that is not used for so long belongs to a client that is gone. Taking one away that is not is safe: it only orders.
const TURN_MAX: Duration = Duration::from_secs(2);
/// Time after which an append gives up.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Who appends next, in this process.
#[derive(Default)]
pub(crate) struct Appenders {
    lines: Lines,
    /// Turns taken so far: no two have the same value.
    turns: AtomicU64,
}

/// What a try has come to.
enum Tried {
    /// Where the data is.
    Done(u64, Written),
    /// From now on it is our turn.
    Turn(Bytes),
    /// It is the turn of whoever wrote this.
    Wait(Bytes),
}

impl Meta {
    /// Commits a slice at the end of the file, wherever that is when the commit happens, and answers its offset. At a chunk border the
    /// slice is named by two records. `OWNERDEAD` and `AGAIN` as `write`.
    pub async fn append(&self, ino: Ino, slice: NewSlice, mtime: Time) -> Result<(u64, Attr), Errno> {
        let (offset, written) = {
            let _first = self.appenders.lines.first(ino).await;
            self.append_in_turn(ino, &slice, mtime).await?
        };
        let parts: Vec<_> = chunk_parts(offset..offset + u64::from(slice.len)).collect();
        // At a border two lists have grown: they are read anew.
        if let [part] = parts[..] {
            let record = SliceRecord { pos: part.pos, ..slice.record() };
            self.lists.grown(ino, part.index, written.growth(&[record]));
        }
        self.journal().note_put(slice.own_frame());
        self.ask_compaction(ino, (offset / CHUNK_BYTES) as u32, 1, written.list_len);
        Ok((offset, written.attr))
    }

    async fn append_in_turn(&self, ino: Ino, slice: &NewSlice, mtime: Time) -> Result<(u64, Written), Errno> {
        let began = self.driver.clock.elapsed();
        let mut turn: Option<Bytes> = None;
        let mut waiting: Option<(Bytes, Duration)> = None;
        let outcome = loop {
            let owner = match self.try_append(ino, slice, mtime, turn.as_ref()).await {
                Ok(Tried::Done(offset, written)) => return Ok((offset, written)),
                Ok(Tried::Turn(value)) => {
                    turn = Some(value);
                    continue;
                }
                Ok(Tried::Wait(owner)) => owner,
                Err(errno) => break Err(errno),
            };
            let now = self.driver.clock.elapsed();
            if now.saturating_sub(began) > WAIT_MAX {
                error!(%ino, "an append has waited for its turn for {WAIT_MAX:?}");
                break Err(Errno::IO);
            }
            match &waiting {
                Some((seen, since)) if *seen == owner => {
                    if now.saturating_sub(*since) > TURN_MAX {
                        warn!(%ino, "another client took its turn to append and has not used it");
                        self.end_turn(ino, owner).await?;
                        continue;
                    }
                }
                _ => waiting = Some((owner, now)),
            }
            tokio::time::sleep(PAUSE).await;
        };
        if let Some(turn) = turn {
            // If this fails as well, others end it when it is old.
            let _ = self.end_turn(ino, turn).await;
        }
        outcome
    }

    async fn try_append(&self, ino: Ino, slice: &NewSlice, mtime: Time, turn: Option<&Bytes>) -> Result<Tried, Errno> {
        let (root, tries) = (Caller::root(), AtomicU32::new(0));
        let orderly = self.is_far();
        let append = || {
            self.run("append", &root, |view, cx| {
                let refused = tries.fetch_add(1, Ordering::Relaxed) >= FREE_TRIES;
                if orderly {
                    self.step_in_turn(view, cx, ino, slice, mtime, turn, refused)
                } else {
                    done(append_step(view, cx, ino, slice, mtime)?)
                }
            })
        };
        self.under_locks(ino, append).await
    }

    #[expect(clippy::too_many_arguments, reason = "an append and where it stands")]
    fn step_in_turn(
        &self,
        view: &View,
        cx: &Cx,
        ino: Ino,
        slice: &NewSlice,
        mtime: Time,
        turn: Option<&Bytes>,
        refused: bool,
    ) -> Result<Plan<Tried>, Stop> {
        let field = key::decimal(ino);
        let found = view.field_or(&key::TURNS, &field, turn);
        let is_ours = found.is_some() && found.as_ref() == turn;
        if let Some(owner) = found.clone().filter(|_| !is_ours) {
            return Ok(Plan::answer(Tried::Wait(owner)));
        }
        let guard = Guard::Field(key::TURNS, field.clone(), found);
        if refused && !is_ours {
            let value: Bytes = format!("{}_{}", cx.sid, self.appenders.turns.fetch_add(1, Ordering::Relaxed)).into();
            return Ok(Plan::new(vec![guard], vec![Write::HSet(key::TURNS, field, value.clone())], Tried::Turn(value)));
        }
        let mut plan = done(append_step(view, cx, ino, slice, mtime)?)?;
        plan.guards.push(guard);
        if is_ours {
            // Behind the list, whose reply is looked at; counters stay last.
            plan.writes.insert(1, Write::HDel(key::TURNS, field));
        }
        Ok(plan)
    }

    async fn end_turn(&self, ino: Ino, value: Bytes) -> Result<(), Errno> {
        let field = key::decimal(ino);
        self.run("end a turn", &Caller::root(), |view, _| {
            if view.field_or(&key::TURNS, &field, Some(&value)).as_ref() != Some(&value) {
                return Ok(Plan::answer(()));
            }
            let guard = Guard::Field(key::TURNS, field.clone(), Some(value.clone()));
            Ok(Plan::new(vec![guard], vec![Write::HDel(key::TURNS, field.clone())], ()))
        })
        .await
    }
}

fn done(plan: Plan<(u64, Written)>) -> Result<Plan<Tried>, Stop> {
    let finish = plan.finish;
    Ok(Plan {
        guards: plan.guards,
        writes: plan.writes,
        reads: plan.reads,
        while_closed: plan.while_closed,
        finish: Box::new(move |replies, values| finish(replies, values).map(|(offset, written)| Tried::Done(offset, written))),
    })
}
