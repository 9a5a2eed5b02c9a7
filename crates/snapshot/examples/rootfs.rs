//! Measures root filesystems: `rootfs <root directory> [layers] [rounds]`. It mounts: run it below `unshare --mount`.
#![allow(clippy::print_stdout, reason = "it is its purpose")]

use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use crisp_snapshot::{ChainId, LayerStore, Limits, Rootfs};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("root directory, please")?;
    let layers: u64 = args.next().map_or(Ok(8), |n| n.parse())?;
    let rounds: usize = args.next().map_or(Ok(200), |n| n.parse())?;
    let root = Path::new(&root);
    let store = LayerStore::open(root)?;
    let mut chain: Vec<ChainId> = Vec::new();
    for n in 0..layers {
        // Nothing but the end of an archive, of a length that makes each layer another.
        let tar = vec![0u8; 1024 + usize::try_from(n)?];
        chain.push(store.commit(store.unpack(&tar[..], &Limits::default())?, chain.last())?);
    }
    let mut times: [Vec<Duration>; 3] = Default::default();
    let (writable, target) = (root.join("container"), root.join("rootfs"));
    for _ in 0..rounds {
        let start = Instant::now();
        let rootfs = Rootfs::prepare(&store, &writable, &chain, &target)?;
        times[0].push(start.elapsed());
        let start = Instant::now();
        Rootfs::unmount(rootfs.target())?;
        times[1].push(start.elapsed());
        let start = Instant::now();
        Rootfs::remove_writable(&writable)?;
        times[2].push(start.elapsed());
    }
    for (what, times) in ["prepare", "unmount", "remove"].iter().zip(&mut times) {
        times.sort_unstable();
        println!("{what}: p50 {:?}, p95 {:?}", times[rounds / 2], times[rounds * 95 / 100]);
    }
    for chain in chain.iter().rev() {
        store.remove(chain)?;
    }
    Ok(())
}
