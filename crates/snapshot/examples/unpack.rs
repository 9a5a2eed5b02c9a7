//! Measures unpacking: `unpack <root directory> <uncompressed tar> [rounds]`. The root directory should lie on a tmpfs.
#![allow(clippy::print_stdout, reason = "it is its purpose")]

use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use crisp_snapshot::{LayerStore, Limits};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(tar)) = (args.next(), args.next()) else {
        return Err("root directory and tar, please".into());
    };
    let rounds = args.next().map_or(Ok(3), |n| n.parse())?;
    let store = LayerStore::open(Path::new(&root))?;
    for _ in 0..rounds {
        let start = Instant::now();
        let staged = store.unpack(File::open(&tar)?, &Limits::default())?;
        let unpacked = start.elapsed();
        let chain = store.commit(staged, None)?;
        let committed = start.elapsed() - unpacked;
        let usage = store.contains(&chain).unwrap_or_default();
        store.remove(&chain)?;
        let removed = start.elapsed() - unpacked - committed;
        println!("unpack {unpacked:.3?}, commit {committed:.3?}, remove {removed:.3?}; {usage:?}");
    }
    Ok(())
}
