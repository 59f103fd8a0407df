//! Which client of a volume does a periodic job (metadata §5.5): the one that finds its last run long enough ago.

use crate::meta::client::Cx;
use crate::meta::codec::decode_decimal;
use crate::meta::store::{Guard, Key, Write};
use crate::meta::view::{Plan, Stop, View};
use crate::meta::{Meta, key};
use crate::types::{Caller, Errno};

fn step(view: &View, cx: &Cx, counter: &Key, seconds: i64) -> Result<Plan<bool>, Stop> {
    let stored = view.string(counter)?;
    let last = decode_decimal(stored.as_deref()).ok_or(Errno::IO)?;
    if last > cx.now.sec.saturating_sub(seconds) {
        return Ok(Plan::answer(false));
    }
    Ok(Plan::new(vec![Guard::Value(counter.clone(), stored)], vec![Write::Set(counter.clone(), key::decimal(cx.now.sec))], true))
}

impl Meta {
    /// Whether this client is to do a job now that is due every `seconds`; if so the others will not, until then. `counter` is the job's key.
    pub async fn elect(&self, counter: &Key, seconds: i64) -> Result<bool, Errno> {
        self.run("elect", &Caller::root(), |view, cx| step(view, cx, counter, seconds)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready};
    use std::time::Duration;

    #[test]
    fn one_of_several_and_again_when_it_is_due() {
        let world = World::new();
        let other = world.neighbour();
        let elect = |meta: &Meta| ready(meta.elect(&key::LAST_CLEANUP_TRASH, 3240)).unwrap();
        assert!(elect(&world.meta));
        assert_eq!(world.counter(key::LAST_CLEANUP_TRASH), world.now().sec);
        assert!(!elect(&other) && !elect(&world.meta));
        world.clock.advance(Duration::from_secs(3240));
        // Two at the same moment: the second one meets what the first has written.
        let rival = world.neighbour();
        world.store.before_commit(move || assert!(ready(rival.elect(&key::LAST_CLEANUP_TRASH, 3240)).unwrap()));
        assert!(!elect(&other));
    }
}
