//! Behaviour of whole caches: sharing, limits, disks that fail.
