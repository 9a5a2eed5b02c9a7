//! Chores of this repository: `cargo xtask codegen [--check]` and `cargo xtask tidy`.
#![forbid(unsafe_code)]

mod codegen;
mod tidy;

use std::path::Path;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "usage: cargo xtask codegen    write the generated API code
       cargo xtask codegen --check   fail when the committed code is not fresh
       cargo xtask tidy              fail when a crate depends on what it must not";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the repository's root")?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["codegen"] => codegen::write(root),
        ["codegen", "--check"] => codegen::check(root),
        ["tidy"] => tidy::check(root),
        _ => bail!("{USAGE}"),
    }
}
