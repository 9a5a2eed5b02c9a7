//! Mounts as CRI describes them, by every kind of handler.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::node::{Node, same};
use crate::registry::Registry;

tests![
    read_only_reaches_what_is_mounted_below,
    restrictions_reach_what_is_mounted_below,
    another_dev_gets_no_nodes,
];

const HANDLERS: [&str; 3] = ["crisp", "runc", "crun"];

fn mount(host: &Path, inside: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        ..Default::default()
    }
}

/// A folder with another file system mounted in it, for as long as this value lives.
struct Nested(std::path::PathBuf);

impl Nested {
    fn new(node: &Node) -> Result<Self> {
        let path = node.dir().join("nested");
        fs::create_dir_all(path.join("below"))?;
        let status = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(path.join("below")).status()?;
        ensure!(status.success(), "mount a tmpfs");
        Ok(Self(path))
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        let _reported_as_a_leak = Command::new("umount").arg(self.0.join("below")).status();
    }
}

/// What the script prints with this mount, by each handler.
fn by_every_handler(node: &mut Node, mounts: &[cri::Mount], script: &str, expected: &[&str]) -> Result<()> {
    for handler in HANDLERS {
        let pod = node.run_with(node.pod(handler), handler)?;
        let mut config = node.container("c", &["sh", "-c", script]);
        config.mounts = mounts.to_vec();
        let text = node.printed(&pod, &config)?;
        same(handler, &text.lines().collect::<Vec<_>>(), &expected.to_vec())?;
    }
    // The folders of the programs' own state stay.
    node.remove_all()?;
    node.rebase()
}

fn read_only_reaches_what_is_mounted_below(node: &mut Node, _: &mut Registry) -> Result<()> {
    let nested = Nested::new(node)?;
    let mounts = [
        cri::Mount { readonly: true, recursive_read_only: true, ..mount(&nested.0, "/all") },
        cri::Mount { readonly: true, ..mount(&nested.0, "/top") },
    ];
    let script = "for dir in /all /all/below /top /top/below; do (echo x >$dir/x) 2>/dev/null && echo $dir; done; true";
    by_every_handler(node, &mounts, script, &["/top/below"])
}

fn restrictions_reach_what_is_mounted_below(node: &mut Node, _: &mut Registry) -> Result<()> {
    let nested = Nested::new(node)?;
    for dir in ["", "below"] {
        let program = nested.0.join(dir).join("program");
        fs::write(&program, "#!/bin/sh\necho ran\n")?;
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let mounts = [
        cri::Mount { mount_options: vec!["noexec".into()], ..mount(&nested.0, "/no") },
        mount(&nested.0, "/yes"),
    ];
    let script = "for dir in /no /no/below /yes /yes/below; do $dir/program 2>/dev/null; done; true";
    by_every_handler(node, &mounts, script, &["ran", "ran"])
}

fn another_dev_gets_no_nodes(node: &mut Node, _: &mut Registry) -> Result<()> {
    let dev = node.dir().join("dev");
    fs::create_dir(&dev)?;
    fs::write(dev.join("known"), "")?;
    let message = node.dir().join("message");
    fs::write(&message, "")?;
    let mut config = node.container("c", &["sh", "-c", "ls /dev; echo bye >/dev/message"]);
    config.mounts = vec![mount(&dev, "/dev"), mount(&message, "/dev/message")];
    let pod = node.run(node.pod("dev"))?;
    same("seen", &node.printed(&pod, &config)?.lines().collect::<Vec<_>>(), &vec!["known", "message"])?;
    same("message", &fs::read_to_string(&message)?.as_str(), &"bye\n")?;
    let mut names: Vec<_> = fs::read_dir(&dev)?.map(|e| Ok(e?.file_name())).collect::<Result<_>>()?;
    names.sort();
    same("made in the folder", &names, &vec!["known".into(), "message".into()])
}
