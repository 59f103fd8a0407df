//! Guards and writes inside one write transaction.

use super::error::Trouble;
use super::guard::holds;
use super::query::{self, answer, row};
use crate::meta::store::{Commit, Guard, Key, Query, StoreError, Value, Write};
use bytes::Bytes;
use rusqlite::{Connection, Params};
use std::collections::BTreeMap;

/// What a commit does between BEGIN and COMMIT. A `Conflict` or an error means: roll back.
pub(super) fn run(conn: &Connection, guards: &[Guard], writes: &[Write], reads: &[Query]) -> Result<Commit, Trouble> {
    let mut change = Change { conn, strings: BTreeMap::new() };
    let queries: Vec<Query> = guards.iter().map(Guard::query).collect();
    let mut values = Vec::with_capacity(guards.len());
    let mut conflict = false;
    for (guard, query) in guards.iter().zip(&queries) {
        let value = change.answer(query)?;
        conflict |= !holds(guard, &value);
        values.push(value);
    }
    if conflict {
        return Ok(Commit::Conflict(queries.into_iter().zip(values).collect()));
    }
    let replies = writes.iter().map(|write| change.apply(write)).collect::<Result<_, _>>()?;
    change.flush()?;
    let values = reads.iter().map(|query| answer(conn, query)).collect::<Result<_, _>>()?;
    Ok(Commit::Done { replies, values })
}

/// Strings are read once and written once however many guards and patches look at them: the record of a parent directory is guarded,
/// patched and counted in one commit.
struct Change<'c> {
    conn: &'c Connection,
    strings: BTreeMap<Key, Slot>,
}

struct Slot {
    value: Option<Bytes>,
    dirty: bool,
}

fn damaged(key: &Key, what: &str) -> Trouble {
    StoreError::Damaged(format!("{what} in {:?}", key)).into()
}

/// Adds to decimal text, absent = 0.
fn add_decimal(key: &Key, text: Option<&Bytes>, delta: i64) -> Result<(i64, Bytes), Trouble> {
    let old: i64 = match text {
        None => 0,
        Some(text) => std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or_else(|| damaged(key, "no decimal number"))?,
    };
    let new = old.checked_add(delta).ok_or_else(|| damaged(key, "a counter out of range"))?;
    Ok((new, new.to_string().into()))
}

impl Change<'_> {
    /// Before the first write only strings are remembered; all else is asked anew.
    fn answer(&mut self, query: &Query) -> Result<Value, Trouble> {
        match query {
            Query::Get(key) => Ok(Value::Bytes(self.slot(key)?.value.clone())),
            query => answer(self.conn, query),
        }
    }

    fn slot(&mut self, key: &Key) -> Result<&mut Slot, Trouble> {
        if !self.strings.contains_key(key) {
            let slot = Slot { value: query::string(self.conn, key)?, dirty: false };
            self.strings.insert(key.clone(), slot);
        }
        Ok(self.strings.get_mut(key).expect("inserted above if it was missing"))
    }

    fn set(&mut self, key: &Key, value: Bytes) {
        self.strings.insert(key.clone(), Slot { value: Some(value), dirty: true });
    }

    /// Replaces bytes inside a present string.
    fn edit(&mut self, key: &Key, offset: u32, len: usize, edit: impl FnOnce(&mut [u8])) -> Result<(), Trouble> {
        let slot = self.slot(key)?;
        let mut bytes = slot.value.as_deref().ok_or_else(|| damaged(key, "no value to patch"))?.to_vec();
        let from = offset as usize;
        let part =
            from.checked_add(len).and_then(|to| bytes.get_mut(from..to)).ok_or_else(|| damaged(key, "a value too short to patch"))?;
        edit(part);
        *slot = Slot { value: Some(bytes.into()), dirty: true };
        Ok(())
    }

    fn execute(&self, sql: &str, params: impl Params) -> Result<i64, Trouble> {
        let changed = self.conn.prepare_cached(sql)?.execute(params)?;
        Ok(i64::try_from(changed).unwrap_or(i64::MAX))
    }

    fn set_field(&self, key: &Key, field: &[u8], value: &[u8]) -> Result<(), Trouble> {
        self.execute("REPLACE INTO hash (k, f, v) VALUES (?1, ?2, ?3)", [&key[..], field, value])?;
        Ok(())
    }

    fn apply(&mut self, write: &Write) -> Result<Value, Trouble> {
        match write {
            Write::Set(key, value) => self.set(key, value.clone()),
            Write::Patch { key, offset, bytes } => self.edit(key, *offset, bytes.len(), |part| part.copy_from_slice(bytes))?,
            Write::AddU32 { key, offset, delta } => self.add_u32(key, *offset, *delta)?,
            Write::Del(key) => self.delete(key)?,
            Write::IncrBy(key, delta) => {
                let (new, text) = add_decimal(key, self.slot(key)?.value.as_ref(), *delta)?;
                self.set(key, text);
                return Ok(Value::Int(new));
            }
            Write::HSet(key, field, value) => self.set_field(key, field, value)?,
            Write::HDel(key, field) => {
                self.execute("DELETE FROM hash WHERE k = ?1 AND f = ?2", [&key[..], field])?;
            }
            Write::HIncrBy(key, field, delta) => {
                let (new, text) = add_decimal(key, query::field(self.conn, key, field)?.as_ref(), *delta)?;
                self.set_field(key, field, &text)?;
                return Ok(Value::Int(new));
            }
            Write::HIncrIfPresent(key, field, delta) => {
                // Statistics: what is no number stays as it is, and the commit goes on.
                if let Some(text) = query::field(self.conn, key, field)?
                    && let Ok((_, text)) = add_decimal(key, Some(&text), *delta)
                {
                    self.execute("UPDATE hash SET v = ?3 WHERE k = ?1 AND f = ?2", [&key[..], field, &text])?;
                }
            }
            Write::RPush(key, elements) => return self.push_back(key, elements, false),
            Write::RPushX(key, element) => return self.push_back(key, std::slice::from_ref(element), true),
            Write::LPush(key, elements) => return self.push_front(key, elements),
            Write::LTrim(key, count) => self.trim(key, *count)?,
            Write::SAdd(key, member) => {
                self.execute("INSERT INTO member (k, m) VALUES (?1, ?2) ON CONFLICT DO NOTHING", [&key[..], member])?;
            }
            Write::SRem(key, member) => {
                return Ok(Value::Int(self.execute("DELETE FROM member WHERE k = ?1 AND m = ?2", [&key[..], member])?));
            }
            Write::ZAdd(key, score, member) => {
                let sql = "INSERT INTO score (k, m, s) VALUES (?1, ?2, ?3) ON CONFLICT (k, m) DO UPDATE SET s = excluded.s";
                self.execute(sql, (&key[..], &member[..], score))?;
            }
            Write::ZRem(key, member) => {
                return Ok(Value::Int(self.execute("DELETE FROM score WHERE k = ?1 AND m = ?2", [&key[..], member])?));
            }
            Write::PutFrame(id, frame) => {
                self.execute("REPLACE INTO frame (id, v) VALUES (?1, ?2)", (id.cast_signed(), &frame[..]))?;
            }
            Write::DelFrame(id) => {
                return Ok(Value::Int(self.execute("DELETE FROM frame WHERE id = ?1", [id.cast_signed()])?));
            }
        }
        Ok(Value::Done)
    }

    fn add_u32(&mut self, key: &Key, offset: u32, delta: i32) -> Result<(), Trouble> {
        let mut fits = true;
        self.edit(key, offset, size_of::<u32>(), |part| {
            let old = part.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
            match old.checked_add_signed(delta) {
                Some(new) => part.copy_from_slice(&new.to_be_bytes()),
                None => fits = false,
            }
        })?;
        if fits { Ok(()) } else { Err(damaged(key, "a count out of range")) }
    }

    /// A key has one type, so the first table that held it was the only one.
    fn delete(&mut self, key: &Key) -> Result<(), Trouble> {
        let slot = self.slot(key)?;
        if slot.value.is_some() {
            *slot = Slot { value: None, dirty: true };
            return Ok(());
        }
        for sql in [
            "DELETE FROM hash WHERE k = ?1",
            "DELETE FROM list WHERE k = ?1",
            "DELETE FROM member WHERE k = ?1",
            "DELETE FROM score WHERE k = ?1",
        ] {
            if self.execute(sql, [&key[..]])? > 0 {
                break;
            }
        }
        Ok(())
    }

    /// First and last position of a list; `None` if it is empty. Positions of a list are consecutive: elements come at either end and
    /// go at the front.
    fn ends(&self, key: &Key) -> Result<Option<(i64, i64)>, Trouble> {
        let sql = "SELECT (SELECT n FROM list WHERE k = ?1 ORDER BY n LIMIT 1), (SELECT n FROM list WHERE k = ?1 ORDER BY n DESC LIMIT 1)";
        let ends = row(self.conn, sql, [&key[..]], |row| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?)))?;
        Ok(ends.and_then(|(first, last)| first.zip(last)))
    }

    fn put_element(&self, key: &Key, n: Option<i64>, element: &[u8]) -> Result<(), Trouble> {
        let n = n.ok_or_else(|| damaged(key, "a list position out of range"))?;
        self.execute("INSERT INTO list (k, n, v) VALUES (?1, ?2, ?3)", (&key[..], n, element))?;
        Ok(())
    }

    fn push_back(&self, key: &Key, elements: &[Bytes], only_if_present: bool) -> Result<Value, Trouble> {
        let ends = self.ends(key)?;
        if ends.is_none() && only_if_present {
            return Ok(Value::Int(0));
        }
        let (first, last) = ends.unwrap_or((0, -1));
        let mut next = last.checked_add(1);
        for element in elements {
            self.put_element(key, next, element)?;
            next = next.and_then(|n| n.checked_add(1));
        }
        Ok(Value::Int(next.and_then(|n| n.checked_sub(first)).ok_or_else(|| damaged(key, "a list position out of range"))?))
    }

    fn push_front(&self, key: &Key, elements: &[Bytes]) -> Result<Value, Trouble> {
        let (first, last) = self.ends(key)?.unwrap_or((0, -1));
        let mut at = Some(first);
        for element in elements.iter().rev() {
            at = at.and_then(|n| n.checked_sub(1));
            self.put_element(key, at, element)?;
        }
        let len = at.and_then(|n| last.checked_sub(n)).and_then(|n| n.checked_add(1));
        Ok(Value::Int(len.ok_or_else(|| damaged(key, "a list position out of range"))?))
    }

    fn trim(&self, key: &Key, count: u32) -> Result<(), Trouble> {
        let Some((first, _)) = self.ends(key)? else { return Ok(()) };
        let keep_from = first.checked_add(i64::from(count)).ok_or_else(|| damaged(key, "a list position out of range"))?;
        self.execute("DELETE FROM list WHERE k = ?1 AND n < ?2", (&key[..], keep_from))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        for (key, slot) in std::mem::take(&mut self.strings) {
            match (slot.dirty, slot.value) {
                (false, _) => {}
                (true, Some(value)) => {
                    self.execute("REPLACE INTO string (k, v) VALUES (?1, ?2)", [&key[..], &value])?;
                }
                (true, None) => {
                    self.execute("DELETE FROM string WHERE k = ?1", [&key[..]])?;
                }
            }
        }
        Ok(())
    }
}
