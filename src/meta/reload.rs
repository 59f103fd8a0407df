//! Noticing that the setting was changed by another client (cli §4.2).

use crate::meta::Meta;
use crate::meta::driver::errno_of;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Query, Value};
use crate::types::Errno;
use std::sync::atomic::Ordering;
use tracing::{error, info};

impl Meta {
    /// Reads the setting again: capacity, inodes, days of the trash and limits hold from now on. What decides how data is stored cannot
    /// change. A document that is gone or damaged is an error, and the one known goes on being used. If it is of another volume nothing is changed
    /// any more: our slices would be named by its records and lie in a bucket where nobody looks for them.
    pub async fn reload_setting(&self) -> Result<(), Errno> {
        let values = self.driver.store.read(&[Query::Get(key::SETTING)]).await.map_err(|e| errno_of("read the setting", &e))?;
        let old = self.setting();
        let new = match values.into_iter().next() {
            Some(Value::Bytes(Some(bytes))) => Setting::parse(&bytes),
            _ => Err("it is gone".into()),
        };
        match new {
            Ok(new) if (new.uuid(), new.name()) == (old.uuid(), old.name()) => {
                self.disowned.store(false, Ordering::Relaxed);
                if new != *old {
                    info!("the setting of volume {} was changed", new.name());
                    self.replace_setting(new);
                }
                Ok(())
            }
            Ok(new) => {
                self.disowned.store(true, Ordering::Relaxed);
                error!("the metadata are those of another volume now ({} {}); unmount this one", new.name(), new.uuid());
                Err(Errno::IO)
            }
            Err(why) => {
                error!("the setting of volume {} cannot be used: {why}; unmount it", old.name());
                Err(Errno::IO)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ops::chunk::testing::{World, ready, slice};
    use crate::meta::store::Write;

    #[test]
    fn nothing_is_changed_in_a_store_that_holds_another_volume() {
        let world = World::new();
        ready(world.meta.new_session("/mnt")).unwrap();
        let ino = world.file(0);
        let put = |setting: &Setting| world.store.put(Write::Set(key::SETTING, setting.encode().into()));
        put(&Setting::new("vol", "another", "file", "/", 4096));
        assert_eq!(ready(world.meta.reload_setting()), Err(Errno::IO));
        assert_eq!(ready(world.meta.write(ino, 0, &[slice(0, 1, 5)], world.now())), Err(Errno::IO));
        assert_eq!(ready(world.meta.heartbeat()), Err(Errno::IO));
        assert_eq!(world.list(ino, 0), []);
        // As when the right one is put back.
        put(&world.meta.setting());
        assert_eq!(ready(world.meta.reload_setting()), Ok(()));
        ready(world.meta.write(ino, 0, &[slice(0, 1, 5)], world.now())).unwrap();
    }
}
