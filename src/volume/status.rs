//! What `status` shows: the setting, who uses the volume, how full it is.

use crate::meta::codec::{LockRecord, decode_locks};
use crate::meta::key;
use crate::meta::ops::lock::is_of_session;
use crate::meta::store::{Query, Store, Value};
use crate::volume::VolumeError;
use crate::volume::stores::{Stores, usage};
use serde_json::{Value as Json, json};

/// Sessions shown at most; a volume has one per mount.
const SESSIONS_MAX: u32 = 100_000;
/// Bytes a volume without limit shows as its size: 1 PiB, doubled while it is 80 % full.
const SPACE_SHOWN: u64 = 1 << 50;
/// Inodes a volume without limit shows as available, doubled while it has four times as many.
const INODES_SHOWN: u64 = 10 << 20;

/// The status document.
pub async fn status(stores: &Stores) -> Result<Json, VolumeError> {
    let usage = usage(stores.store.as_ref()).await?;
    let used = u64::try_from(usage.space).unwrap_or(0);
    let inodes = u64::try_from(usage.inodes).unwrap_or(0);
    let total = match stores.setting.capacity() {
        0 => {
            let mut total = SPACE_SHOWN;
            while u128::from(total) * 8 < u128::from(used) * 10 {
                total *= 2;
            }
            total
        }
        capacity => capacity.max(used),
    };
    let inodes_available = match stores.setting.inodes() {
        0 => {
            let mut available = INODES_SHOWN;
            while inodes / 4 > available {
                available *= 2;
            }
            available
        }
        limit => limit.saturating_sub(inodes),
    };
    Ok(json!({
        "Setting": stores.setting.without_secrets(),
        "Sessions": sessions(stores).await?,
        "Stat": {
            "UsedSpace": used,
            "AvailableSpace": total - used,
            "UsedInodes": inodes,
            "AvailableInodes": inodes_available,
        },
    }))
}

/// One session with what it holds: inodes it keeps open although they were unlinked, and locks (cli §4.5).
pub async fn session(stores: &Stores, sid: u64) -> Result<Json, VolumeError> {
    let found = sessions(stores).await?.into_iter().find(|session| session["Sid"] == json!(sid));
    let Some(Json::Object(mut session)) = found else {
        return Err(VolumeError::Refused(format!("get session: session not found: {sid}")));
    };
    let values = stores.store.read(&[Query::SMembers(key::sustained(sid))]).await?;
    if let Some(Value::List(inodes)) = values.first()
        && !inodes.is_empty()
    {
        let numbers: Vec<u64> = inodes.iter().filter_map(|ino| std::str::from_utf8(ino).ok()?.parse().ok()).collect();
        session.insert("Sustained".into(), json!(numbers));
    }
    let (flocks, plocks) = locks(stores, sid).await?;
    for (field, locks) in [("Flocks", flocks), ("Plocks", plocks)] {
        if !locks.is_empty() {
            session.insert(field.into(), json!(locks));
        }
    }
    Ok(Json::Object(session))
}

/// BSD and POSIX locks of a session.
async fn locks(stores: &Stores, sid: u64) -> Result<(Vec<Json>, Vec<Json>), VolumeError> {
    let (mut flocks, mut plocks) = (Vec::new(), Vec::new());
    let values = stores.store.read(&[Query::SMembers(key::locked(sid))]).await?;
    let Some(Value::List(hashes)) = values.into_iter().next() else { return Ok((flocks, plocks)) };
    let queries: Vec<Query> = hashes.iter().map(|hash| Query::HGetAll(hash.clone())).collect();
    for (hash, fields) in hashes.iter().zip(stores.store.read(&queries).await?) {
        let Value::Pairs(fields) = fields else { continue };
        let ino = |prefix: &str| std::str::from_utf8(hash).ok()?.strip_prefix(prefix)?.parse::<u64>().ok();
        for (field, value) in fields.iter().filter(|(field, _)| is_of_session(field, sid)) {
            let Some(owner) = owner_of(field) else { continue };
            if let Some(ino) = ino("lockf") {
                flocks.push(json!({"Inode": ino, "Owner": owner, "Ltype": String::from_utf8_lossy(value)}));
            } else if let (Some(ino), Some(records)) = (ino("lockp"), decode_locks(value)) {
                let record =
                    |lock: &LockRecord| json!({"Type": u32::from(lock.exclusive), "Pid": lock.pid, "Start": lock.start, "End": lock.end});
                let records: Vec<Json> = records.iter().map(record).collect();
                plocks.push(json!({"Inode": ino, "Owner": owner, "Records": records}));
            }
        }
    }
    Ok((flocks, plocks))
}

/// The owner in the field of a lock hash, `{session}_{owner in hexadecimal}`.
fn owner_of(field: &[u8]) -> Option<u64> {
    let (_, owner) = std::str::from_utf8(field).ok()?.split_once('_')?;
    u64::from_str_radix(owner, 16).ok()
}

async fn sessions(stores: &Stores) -> Result<Vec<Json>, VolumeError> {
    sessions_of(stores.store.as_ref()).await
}

/// Every session with the document its client left.
pub(super) async fn sessions_of(store: &dyn Store) -> Result<Vec<Json>, VolumeError> {
    let queries = [Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: SESSIONS_MAX }, Query::HGetAll(key::SESSION_INFOS)];
    let values = store.read(&queries).await?;
    let [Value::Scored(expiries), Value::Pairs(infos)] = values.as_slice() else {
        return Err(VolumeError::Failed("the metadata store gave no answer about sessions".into()));
    };
    let mut sessions: Vec<(u64, Json)> = Vec::with_capacity(expiries.len());
    for (sid, expiry) in expiries {
        let Some(number) = std::str::from_utf8(sid).ok().and_then(|text| text.parse().ok()) else { continue };
        let mut session = serde_json::Map::new();
        session.insert("Sid".into(), json!(number));
        session.insert("Expire".into(), json!(rfc3339(*expiry)));
        let info = infos.iter().find(|(field, _)| field == sid).and_then(|(_, text)| serde_json::from_slice::<Json>(text).ok());
        if let Some(Json::Object(info)) = info {
            session.extend(info);
        }
        sessions.push((number, Json::Object(session)));
    }
    sessions.sort_by_key(|(sid, _)| *sid);
    Ok(sessions.into_iter().map(|(_, session)| session).collect())
}

/// Seconds since 1970 as RFC 3339 in UTC.
fn rfc3339(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date of the proleptic Gregorian calendar: years begin in March, so that leap days come last; eras have 400 years.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::codec::encode_locks;
    use crate::meta::store::Write;
    use crate::types::Ino;
    use crate::volume::{MetaUrl, NewVolume, create};

    #[tokio::test]
    async fn a_session_is_shown_with_its_locks() {
        let dir = tempfile::tempdir().unwrap();
        let url = MetaUrl::Embedded(dir.path().join("vol"));
        create(&url, &NewVolume { name: "vol".into(), ..NewVolume::default() }).await.unwrap();
        let stores = Stores::open(&url).await.unwrap();
        let lock = LockRecord { exclusive: true, pid: 26967, start: 5, end: 14 };
        let writes = [
            Write::ZAdd(key::ALL_SESSIONS, 1_700_000_000, key::decimal(1)),
            Write::HSet(key::SESSION_INFOS, key::decimal(1), r#"{"HostName":"vm"}"#.into()),
            Write::SAdd(key::locked(1), key::flock(Ino(8))),
            Write::SAdd(key::locked(1), key::plock(Ino(8))),
            Write::HSet(key::flock(Ino(8)), key::lock_field(1, 0xAB), "W".into()),
            // Another session's, in the same hash.
            Write::HSet(key::flock(Ino(8)), key::lock_field(11, 0xAB), "R".into()),
            Write::HSet(key::plock(Ino(8)), key::lock_field(1, 2), encode_locks(&[lock])),
        ];
        stores.store.commit(&[], &writes, &[]).await.unwrap();
        let shown = session(&stores, 1).await.unwrap();
        let expected = json!({
            "Sid": 1,
            "Expire": "2023-11-14T22:13:20Z",
            "HostName": "vm",
            "Flocks": [{"Inode": 8, "Owner": 171, "Ltype": "W"}],
            "Plocks": [{"Inode": 8, "Owner": 2, "Records": [{"Type": 1, "Pid": 26967, "Start": 5, "End": 14}]}],
        });
        assert_eq!(shown, expected);
        assert!(session(&stores, 99).await.unwrap_err().to_string().contains("session not found: 99"));
    }

    #[test]
    fn times() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }
}
