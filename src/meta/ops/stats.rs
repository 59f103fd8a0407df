//! Usage counters: of the volume (metadata §10.1), of directories (§10.2), and the limits of the volume.

use crate::meta::Cx;
use crate::meta::codec::decode_decimal;
use crate::meta::key;
use crate::meta::store::{Query, Write};
use crate::meta::view::{Stop, View};
use crate::types::{Attr, Errno, Ino, Kind};

/// Bytes of data an inode adds to the statistics of its directory: only files have data there.
pub(crate) fn data_length(attr: &Attr) -> i64 {
    if attr.kind == Kind::File { i64::try_from(attr.length).unwrap_or(i64::MAX) } else { 0 }
}

/// What changes in the statistics of a directory when its direct children do. Only fields that are there are changed: an absent one
/// means "not counted yet", and a number that begins with our delta would be believed.
pub(crate) fn usage(cx: &Cx, parent: Ino, dlen: i64, dspace: i64, dinodes: i64) -> Vec<Write> {
    if !cx.setting.dir_stats() {
        return Vec::new();
    }
    [(key::DIR_DATA_LENGTH, dlen), (key::DIR_USED_SPACE, dspace), (key::DIR_USED_INODES, dinodes)]
        .into_iter()
        .filter(|(_, delta)| *delta != 0)
        .map(|(key, delta)| Write::HIncrIfPresent(key, key::decimal(parent), delta))
        .collect()
}

/// The same for one child gained (`sign` 1) or lost (−1).
pub(crate) fn child(cx: &Cx, parent: Ino, attr: &Attr, sign: i64) -> Vec<Write> {
    usage(cx, parent, sign * data_length(attr), sign * attr.space(), sign)
}

/// What changes in the counters of the volume.
pub(crate) fn volume(dspace: i64, dinodes: i64) -> Vec<Write> {
    [(key::USED_SPACE, dspace), (key::TOTAL_INODES, dinodes)]
        .into_iter()
        .filter(|(_, delta)| *delta != 0)
        .map(|(key, delta)| Write::IncrBy(key, delta))
        .collect()
}

/// Space and inodes the volume uses now. Crashed peers can leave a counter below zero; it reads as zero.
pub(crate) fn used(view: &View) -> Result<(u64, u64), Stop> {
    view.want([Query::Get(key::USED_SPACE), Query::Get(key::TOTAL_INODES)])?;
    let read = |key| {
        let value = view.string(&key)?;
        decode_decimal(value.as_deref()).map(|n| u64::try_from(n).unwrap_or(0)).ok_or(Stop::Fail(Errno::IO))
    };
    Ok((read(key::USED_SPACE)?, read(key::TOTAL_INODES)?))
}

/// ENOSPC if growing by this much would pass a limit of the volume. The counters are not guarded: every creator would conflict with
/// every other one. So limits are soft by what is in flight.
pub(crate) fn check_room(view: &View, cx: &Cx, dspace: i64, dinodes: i64) -> Result<(), Stop> {
    let (capacity, inodes) = (cx.setting.capacity(), cx.setting.inodes());
    let limits = (capacity > 0 && dspace > 0) || (inodes > 0 && dinodes > 0);
    if !limits {
        return Ok(());
    }
    let (space_used, inodes_used) = used(view)?;
    let exceeds = |limit: u64, used: u64, delta: i64| limit > 0 && delta > 0 && used.saturating_add_signed(delta) > limit;
    if exceeds(capacity, space_used, dspace) || exceeds(inodes, inodes_used, dinodes) {
        return Err(Errno::NOSPC.into());
    }
    Ok(())
}
