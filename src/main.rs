//! The `pando` binary: hands the command line to `pando::cli` and exits with its code.

fn main() -> std::process::ExitCode {
    pando::cli::run()
}
