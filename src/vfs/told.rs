//! What other clients change is passed on to the kernel of this host, so that it asks anew within milliseconds and not when timeouts end.

use crate::meta::{RecordListener, Told};
use crate::types::Ino;
use crate::vfs::Vfs;
use crate::vfs::handed::Names;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

/// Runs until the volume or the mount is gone.
pub(crate) async fn pass_on(vfs: Weak<Vfs>, mut told: Receiver<Told>) {
    loop {
        let news = told.recv().await;
        let Some(vfs) = vfs.upgrade() else { return };
        match news {
            Ok(Told::Names(dir, before)) => match vfs.handed.take(dir) {
                Names::These(names) => vfs.forget_names(dir, &names),
                Names::Many => vfs.forget_differing(dir, before),
            },
            // Which directories were changed is not known.
            Err(RecvError::Lagged(_)) => {
                for (dir, names) in vfs.handed.take_all() {
                    vfs.forget_names(dir, &names);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// An invalidation makes the kernel throw away the attributes that are on their way to it, and go on with the length it had. One that came
/// after a lock was granted would make the next program write at an old end: so those of what was changed before are sent before any
/// answer that came after it.
impl RecordListener for Vfs {
    fn record_changed(&self, ino: Ino) {
        self.kernel().forget_attr(self.mount.outward(ino));
    }
}

impl Vfs {
    fn forget_names(&self, dir: Ino, names: &[Bytes]) {
        for name in names {
            self.kernel().forget_entry(self.mount.outward(dir), name);
        }
    }

    /// Takes back the names that do not stand for the same any more. Where it does not pay to find out which, the kernel's timeouts hold.
    fn forget_differing(self: &Arc<Vfs>, dir: Ino, before: Option<Arc<HashMap<Bytes, Bytes>>>) {
        let Some(before) = before else { return };
        let Ok(permit) = self.loads.clone().try_acquire_owned() else { return };
        let vfs = self.clone();
        tokio::spawn(async move {
            vfs.forget_names(dir, &vfs.meta.differing_names(dir, &before).await);
            drop(permit);
        });
    }

    /// Begins to pass on what others change.
    pub(crate) fn listen(self: &Arc<Vfs>) {
        let listener: Weak<Vfs> = Arc::downgrade(self);
        if let Some(told) = self.meta.listen(listener) {
            tokio::spawn(pass_on(Arc::downgrade(self), told));
        }
    }
}
