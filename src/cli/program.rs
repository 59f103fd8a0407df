//! The name under which the program was called, and what it changes.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// Who the program is to its caller. Commands and options are the same; defaults and lines of output follow the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Itself.
    Pando,
    /// A JuiceFS client: scripts that use one see what they know.
    Juicefs,
}

static CALLED: OnceLock<Program> = OnceLock::new();

impl Program {
    /// By the first word of the command line. The links for mount(8) are named after the program.
    fn of(argv0: &str) -> Program {
        match Path::new(argv0).file_name().and_then(|name| name.to_str()) {
            Some("juicefs" | "mount.juicefs") => Program::Juicefs,
            _ => Program::Pando,
        }
    }

    /// The program this process was called as; decided by the first call.
    pub fn called() -> Program {
        *CALLED.get_or_init(|| Program::of(&std::env::args_os().next().unwrap_or_default().to_string_lossy()))
    }

    /// Its name in output and paths.
    pub fn name(self) -> &'static str {
        match self {
            Program::Pando => "pando",
            Program::Juicefs => "juicefs",
        }
    }

    /// What mounts are called in `/proc/mounts`: before the colon of the source.
    pub fn source(self) -> &'static str {
        match self {
            Program::Pando => "Pando",
            Program::Juicefs => "JuiceFS",
        }
    }

    /// Whether `.trash` appears in the root of a volume unless the command line says otherwise.
    pub fn shows_internal(self) -> bool {
        self == Program::Juicefs
    }

    /// How long a background mount may take. Health checks of JuiceFS count on 10 s; a start takes milliseconds, a second with another
    /// process on the volume, and longer only while the log of a crashed local volume is recovered.
    pub fn ready_time_max(self) -> Duration {
        match self {
            Program::Pando => Duration::from_secs(60),
            Program::Juicefs => Duration::from_secs(10),
        }
    }

    /// Largest request of the kernel unless the command line says otherwise.
    pub fn request_bytes(self) -> u64 {
        match self {
            Program::Pando => 1 << 20,
            Program::Juicefs => 128 << 10,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_of_the_path_decides() {
        for (argv0, program) in [
            ("juicefs", Program::Juicefs),
            ("/usr/local/bin/juicefs", Program::Juicefs),
            ("/sbin/mount.juicefs", Program::Juicefs),
            ("pando", Program::Pando),
            ("/opt/juicefs/pando", Program::Pando),
            ("", Program::Pando),
        ] {
            assert_eq!(Program::of(argv0), program, "{argv0}");
        }
    }
}
