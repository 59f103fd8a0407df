//! Development tasks: `cargo xtask tidy | test | soak NAME | bench`.
fn main() {}
