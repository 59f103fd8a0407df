//! Size and use of the volume (metadata §6.18).

use crate::env::DiskSpace;
use crate::meta::Meta;
use crate::meta::ops::quota::Quota;
use crate::meta::ops::stats;
use crate::meta::setting::Setting;
use crate::meta::view::Plan;
use crate::types::{Caller, Errno, Ino};

/// What a volume without a limit shows at first; doubled when most of it is used.
const SPACE_SHOWN: u64 = 1 << 50;
/// The same for free inodes.
const INODES_SHOWN: u64 = 10 << 20;

/// Size and use of a volume, in bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that may still be used.
    pub available: u64,
    /// Bytes in use.
    pub used: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that may still be created.
    pub inodes_available: u64,
    /// Inodes in use.
    pub inodes_used: u64,
}

fn stat(setting: &Setting, disk: Option<DiskSpace>, used: u64, inodes_used: u64) -> StatFs {
    let total = match setting.capacity() {
        0 => {
            let mut total = SPACE_SHOWN;
            // Four fifths used: show twice as much.
            while total / 10 * 8 < used && total < 1 << 62 {
                total *= 2;
            }
            total
        }
        capacity => capacity.max(used),
    };
    let (total, available, used) = match disk {
        None => (total, total.saturating_sub(used), used),
        // Others use the disk, too: what is not free is in use.
        Some(disk) if setting.capacity() == 0 => (disk.total, disk.available, disk.total.saturating_sub(disk.free)),
        Some(disk) => (total, total.saturating_sub(used).min(disk.available), used),
    };
    let inodes_available = match setting.inodes() {
        0 => {
            let mut available = INODES_SHOWN;
            while inodes_used / 4 > available && available < 1 << 62 {
                available *= 2;
            }
            available
        }
        limit => limit.saturating_sub(inodes_used),
    };
    StatFs { total, available, used, inodes: inodes_used.saturating_add(inodes_available), inodes_available, inodes_used }
}

impl Meta {
    /// Size and use of the volume as seen from a directory: what is left is bounded by the quotas of the directories above, and the nearest
    /// of them says what is used. `disk`: the only one the volume lies on, if it is known; without a capacity the volume is as large as that.
    pub async fn statfs(&self, root: Ino, disk: Option<DiskSpace>) -> Result<StatFs, Errno> {
        let mut stat = self
            .answer("statfs", &Caller::root(), move |view, cx| {
                let (used, inodes_used) = stats::used(view)?;
                Ok(Plan::answer(stat(cx.setting, disk, used, inodes_used)))
            })
            .await?;
        let quotas = self.quotas_above(root).await?;
        let left = |max: i64, used: i64| u64::try_from(max.saturating_sub(used.max(0))).unwrap_or(0);
        for Quota { max, used } in &quotas {
            if max.space > 0 {
                stat.available = stat.available.min(left(max.space, used.space));
            }
            if max.inodes > 0 {
                stat.inodes_available = stat.inodes_available.min(left(max.inodes, used.inodes));
            }
        }
        if let Some(nearest) = quotas.first() {
            stat.used = u64::try_from(nearest.used.space).unwrap_or(0);
            stat.inodes_used = u64::try_from(nearest.used.inodes).unwrap_or(0);
            stat.total = stat.used.saturating_add(stat.available);
            stat.inodes = stat.inodes_used.saturating_add(stat.inodes_available);
        }
        Ok(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_volume_is_as_large_as_its_capacity_its_disk_or_the_format_says() {
        let mut setting = Setting::new("vol", "uuid", "file", "objects/", 4096);
        let disk = Some(DiskSpace { total: 1000 << 20, free: 400 << 20, available: 300 << 20, ..DiskSpace::default() });
        let shown = |setting: &Setting, disk| {
            let stat = stat(setting, disk, 50 << 20, 1);
            (stat.total >> 20, stat.available >> 20, stat.used >> 20)
        };
        assert_eq!(shown(&setting, None), (1 << 30, (1 << 30) - 50, 50));
        assert_eq!(shown(&setting, disk), (1000, 300, 600));
        setting.set("Capacity", json!(200_u64 << 20));
        assert_eq!(shown(&setting, disk), (200, 150, 50));
        setting.set("Capacity", json!(2000_u64 << 20));
        assert_eq!(shown(&setting, disk), (2000, 300, 50), "no more than the disk has");
        assert_eq!(shown(&setting, None), (2000, 1950, 50));
    }
}
