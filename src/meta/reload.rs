//! Noticing that the setting was changed by another client (cli §4.2).

use crate::meta::Meta;
use crate::meta::driver::errno_of;
use crate::meta::key;
use crate::meta::setting::Setting;
use crate::meta::store::{Query, Value};
use crate::types::Errno;
use tracing::{error, info};

impl Meta {
    /// Reads the setting again: capacity, inodes, days of the trash and limits hold from now on. What decides how data is stored cannot
    /// change. A document that is gone, damaged or of another volume is an error, and the one known goes on being used.
    pub async fn reload_setting(&self) -> Result<(), Errno> {
        let values = self.driver.store.read(&[Query::Get(key::SETTING)]).await.map_err(|e| errno_of("read the setting", &e))?;
        let old = self.setting();
        let new = match values.into_iter().next() {
            Some(Value::Bytes(Some(bytes))) => Setting::parse(&bytes),
            _ => Err("it is gone".into()),
        };
        match new {
            Ok(new) if new == *old => Ok(()),
            Ok(new) if (new.uuid(), new.name()) == (old.uuid(), old.name()) => {
                info!("the setting of volume {} was changed", new.name());
                self.replace_setting(new);
                Ok(())
            }
            Ok(new) => {
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
