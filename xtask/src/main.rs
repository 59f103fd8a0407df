//! Development tasks: `cargo xtask tidy | test | soak [NAME] | bench [DIR…] | interop`.

mod bench;
mod interop;
mod setup;
mod tidy;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

const USAGE: &str = "usage: cargo xtask COMMAND
  tidy               check layers, crate fences, file sizes, purpose lines and words
  setup              install what the tests need
  test [FILTER…]     set up, then run every test in its quick size
  soak [FILTER…]     set up, then run the long tests in their full size
  bench [NAME=DIR…]  run the same work in each directory and print figures and ratios
  interop            use the same volumes as the JuiceFS client that JUICEFS names";

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    match command.as_str() {
        "tidy" => {
            let findings = tidy::check(&root())?;
            for finding in &findings {
                eprintln!("{finding}");
            }
            if !findings.is_empty() {
                bail!("{} findings", findings.len());
            }
            Ok(())
        }
        "setup" => setup::install(&root()),
        "test" => {
            setup::install(&root())?;
            let mut test = cargo(&["test", "--workspace", "--no-fail-fast"]);
            if !rest.is_empty() {
                test.arg("--").args(&rest);
            }
            run(&mut test)
        }
        "soak" => {
            setup::install(&root())?;
            // One after the other: each figure is of a machine that does nothing else.
            let mut soak = cargo(&["test", "--release", "--package", "pando", "--test", "suite", "--", "--nocapture", "--test-threads=1"]);
            run(soak.args(&rest).env("PANDO_SOAK", "1"))
        }
        "bench" => bench::run(&root(), &rest),
        "interop" => interop::run(&root()),
        _ => {
            eprintln!("{USAGE}");
            bail!("unknown command {command:?}")
        }
    }
}

/// The top directory of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the top directory").to_path_buf()
}

fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}
