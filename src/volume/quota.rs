//! `quota`: limits of directories, users and groups of a volume that may be in use (cli §4.3).

use crate::meta::Meta;
use crate::meta::key;
use crate::meta::ops::NewNode;
use crate::meta::ops::quota::{Of, Quota, Usage};
use crate::meta::store::{Query, Sharing, Value};
use crate::types::{Caller, Errno, Ino, Kind, Name};
use crate::volume::{Failure, MetaUrl, Stores, VolumeError, config, info};
use serde_json::json;
use std::time::Duration;

/// Mounts know of a quota after this time (jobs/quotas), and count what is used from then on.
const KNOWN_AFTER: Duration = Duration::from_millis(1500);
/// How long clients of another make, and a change of the setting, take to be known everywhere: one heartbeat and a little.
const SETTING_KNOWN_AFTER: Duration = Duration::from_secs(13);
/// How often usage is counted before a count during which it changed is taken.
const COUNTS_MAX: u32 = 3;

/// Whose quota, as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A directory, from the root of the volume.
    Path(String),
    /// A user.
    User(u32),
    /// A group.
    Group(u32),
}

/// A volume whose quotas are looked at or changed.
pub struct Quotas {
    meta: Meta,
}

/// A quota and the name it is shown under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// A path, `uid:N`, `gid:N`, or `inode:N` of a directory whose path is not known.
    pub name: String,
    /// Limits and usage.
    pub quota: Quota,
}

/// What a check has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Whose quota, as it is shown.
    pub name: String,
    /// With the usage that is right.
    pub quota: Quota,
    /// What the volume says is used.
    pub stored: Usage,
}

impl Checked {
    /// Whether the volume says what is right.
    pub fn is_consistent(&self) -> bool {
        self.stored == self.quota.used
    }
}

impl Quotas {
    /// Opens the volume.
    pub async fn open(url: &MetaUrl) -> Result<Quotas, VolumeError> {
        Ok(Quotas { meta: Stores::meta(url).await? })
    }

    /// Whose quota is meant. A directory that is missing is an error, or made with what is above it, 0777 less `umask`.
    async fn owner(&self, owner: &Owner, create: Option<u16>) -> Result<Of, Failure> {
        let path = match owner {
            Owner::User(uid) => return Ok(Of::User(*uid)),
            Owner::Group(gid) => return Ok(Of::Group(*gid)),
            Owner::Path(path) => path,
        };
        let at = |errno| Failure::at(format!("resolve dir {path}"), errno);
        let mut dir = Ino::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
            let name = Name::new(part.as_bytes()).map_err(at)?;
            let (root, lookup) = (Caller::root(), self.meta.lookup(&Caller::root(), dir, &name).await);
            let (ino, attr) = match (lookup, create) {
                (Err(Errno::NOENT), Some(umask)) => {
                    let node = NewNode { kind: Kind::Dir, mode: 0o777, umask, rdev: 0, target: b"" };
                    match self.meta.create(&root, dir, &name, node).await {
                        // Somebody else made it in between.
                        Err(Errno::EXIST) => self.meta.lookup(&root, dir, &name).await,
                        made => made,
                    }
                }
                (found, _) => found,
            }
            .map_err(at)?;
            if !attr.is_dir() {
                return Err(at(Errno::NOTDIR));
            }
            dir = ino;
        }
        Ok(Of::Dir(dir))
    }

    /// Sets limits; a `None` stays as it is. Mounts of this program know them when it returns. The first quota of a directory counts what is there; the first of a user or group begins to count all of them.
    pub async fn set(&self, owner: &Owner, space: Option<i64>, inodes: Option<i64>, create: Option<u16>) -> Result<(), Failure> {
        if create.is_some() {
            Stores::wait_for_kernels(&self.meta).await;
        }
        let of = self.owner(owner, create).await?;
        let setting = self.meta.setting();
        let mut new = (*setting).clone();
        let counts_owners = !matches!(of, Of::Dir(_)) && !setting.user_group_quota();
        if counts_owners {
            new.set("UserGroupQuota", json!(true));
        }
        if !setting.dir_stats() {
            new.set("DirStats", json!(true));
        }
        let changed = new != *setting;
        if changed {
            config::replace_setting(self.meta.store().as_ref(), &setting, &new).await.map_err(failure)?;
            self.meta.reload_setting().await?;
        }
        let is_new = self.meta.set_limits(of, space, inodes).await.map_err(|errno| Failure::at("set the quota", errno))?;
        let is_in_use = self.is_in_use().await?;
        if is_new || counts_owners {
            if is_in_use {
                // From then on every change is counted by who makes it.
                tokio::time::sleep(if changed { SETTING_KNOWN_AFTER } else { KNOWN_AFTER }).await;
            }
            if counts_owners {
                for (of, usage) in self.meta.count_owners().await? {
                    self.meta.set_usage(of, None, usage).await?;
                }
            }
            self.count(of).await?;
        }
        self.meta.sync().await?;
        if is_in_use {
            // Who called the command may rely on the limit.
            tokio::time::sleep(KNOWN_AFTER).await;
        }
        Ok(())
    }

    /// Counts what is used and sets it.
    async fn count(&self, of: Of) -> Result<(), Failure> {
        let Of::Dir(dir) = of else { return Ok(()) };
        for round in 1..=COUNTS_MAX {
            let Some(before) = self.meta.quota(of).await? else { return Ok(()) };
            let usage = self.meta.count_below(dir).await?;
            let was = (round < COUNTS_MAX).then_some(before.used);
            if self.meta.set_usage(of, was, usage).await? {
                break;
            }
        }
        Ok(())
    }

    async fn is_in_use(&self) -> Result<bool, Failure> {
        if self.meta.store().sharing() == Sharing::Alone {
            return Ok(false);
        }
        let sessions = [Query::ZRange { key: key::ALL_SESSIONS, max: i64::MAX, limit: 1 }];
        let values = self.meta.store().read(&sessions).await.map_err(|e| failure(e.into()))?;
        Ok(matches!(values.first(), Some(Value::Scored(sessions)) if !sessions.is_empty()))
    }

    /// Removes a quota; no error if there is none.
    pub async fn remove(&self, owner: &Owner) -> Result<(), Failure> {
        let of = self.owner(owner, None).await?;
        self.meta.remove_limits(of).await?;
        Ok(self.meta.sync().await?)
    }

    /// The quota of one.
    pub async fn get(&self, owner: &Owner) -> Result<Option<Quota>, Failure> {
        let of = self.owner(owner, None).await?;
        Ok(self.meta.quota(of).await?)
    }

    /// All quotas: directories by path, then users and groups that have a limit.
    pub async fn list(&self) -> Result<Vec<Named>, Failure> {
        let mut all = self.meta.quotas();
        all.retain(|(of, quota)| matches!(of, Of::Dir(_)) || quota.max.space > 0 || quota.max.inodes > 0);
        let mut named = Vec::new();
        for (of, quota) in all {
            named.push((of, Named { name: self.name(of).await?, quota }));
        }
        named.sort_by(|(a, one), (b, other)| {
            let class = |of: &Of| match of {
                Of::Dir(_) => (0, 0),
                Of::User(id) => (1, *id),
                Of::Group(id) => (2, *id),
            };
            (class(a), &one.name).cmp(&(class(b), &other.name))
        });
        Ok(named.into_iter().map(|(_, named)| named).collect())
    }

    async fn name(&self, of: Of) -> Result<String, Failure> {
        Ok(match of {
            Of::User(id) => format!("uid:{id}"),
            Of::Group(id) => format!("gid:{id}"),
            Of::Dir(ino) => {
                let path = info::dir_path(self.meta.store(), ino, Ino::ROOT).await.map_err(failure)?;
                match path {
                    Some(path) if path.is_empty() => "/".into(),
                    Some(path) => path,
                    None => format!("inode:{ino}"),
                }
            }
        })
    }

    /// Counts what is used and compares; without an owner that of all users and groups. Repairs what is wrong if it is to.
    pub async fn check(&self, owner: Option<&Owner>, repair: bool) -> Result<Vec<Checked>, Failure> {
        let checked = match owner {
            Some(Owner::Path(path)) => {
                let owner = self.owner(&Owner::Path(path.clone()), None).await?;
                let Of::Dir(dir) = owner else { return Ok(Vec::new()) };
                let Some(quota) = self.meta.quota(owner).await? else { return Ok(Vec::new()) };
                let used = self.meta.count_below(dir).await?;
                vec![(owner, Checked { name: path.clone(), quota: Quota { used, ..quota }, stored: quota.used })]
            }
            owner => {
                if !self.meta.setting().user_group_quota() {
                    return Ok(Vec::new());
                }
                let counted = self.meta.count_owners().await?;
                // Counted behind it: what changes meanwhile is more likely in both.
                self.meta.load_quotas().await?;
                let mut known: std::collections::HashMap<Of, Quota> =
                    self.meta.quotas().into_iter().filter(|(of, _)| !matches!(of, Of::Dir(_))).collect();
                let unlimited = Quota { max: Usage { space: -1, inodes: -1 }, used: Usage::default() };
                for of in counted.keys() {
                    known.entry(*of).or_insert(unlimited);
                }
                let wanted = |of: &Of| match owner {
                    Some(Owner::User(uid)) => *of == Of::User(*uid),
                    Some(Owner::Group(gid)) => *of == Of::Group(*gid),
                    _ => true,
                };
                let mut checked = Vec::new();
                for (of, quota) in known.into_iter().filter(|(of, _)| wanted(of)) {
                    let used = counted.get(&of).copied().unwrap_or_default();
                    checked.push((of, Checked { name: self.name(of).await?, quota: Quota { used, ..quota }, stored: quota.used }));
                }
                checked.sort_by_key(|(of, _)| match of {
                    Of::User(id) => (0, *id),
                    Of::Group(id) => (1, *id),
                    Of::Dir(_) => (2, 0),
                });
                checked
            }
        };
        if repair {
            for (of, found) in checked.iter().filter(|(_, found)| !found.is_consistent()) {
                // Where something changed since it was counted, counting again is another run's.
                self.meta.set_usage(*of, Some(found.stored), found.quota.used).await?;
            }
            self.meta.sync().await?;
        }
        Ok(checked.into_iter().map(|(_, found)| found).collect())
    }
}

fn failure(error: VolumeError) -> Failure {
    Failure { errno: Errno::IO, message: error.to_string() }
}
