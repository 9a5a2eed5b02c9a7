//! The `crisp` command as its users have it.
use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::tests;
use crate::command::run;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, same};
use crate::paths;
use crate::registry::Registry;

tests![
    runs_the_example_to_its_end,
    runs_lists_shows_and_stops_a_detached_pod,
    removes_what_forgotten_pods_left,
    exits_as_the_container_does,
    checks_this_machine,
    prints_a_configuration_that_it_accepts,
];

fn runs_the_example_to_its_end(node: &mut Node, _: &mut Registry) -> Result<()> {
    let examples = paths::repository().join("examples");
    let archive = node.dir().join("busybox.tar").display().to_string();
    run(Command::new(examples.join("busybox-image.sh")).arg(&archive))?;
    node.crisp(&["image", "import", &archive])?;
    let printed = node.crisp(&["run", &examples.join("pod.yaml").display().to_string()])?;
    ensure!(printed.contains("Hello from pod hello at 10.77.1."), "{printed}");
    same("pods", &node.cri.pods()?.len(), &0)
}

/// A manifest with one busybox container.
fn manifest(node: &Node, name: &str, script: &str) -> Result<String> {
    let path = node.dir().join(format!("{name}.yaml"));
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  \
         - name: main\n    image: {BUSYBOX}\n    command: [sh, -c, {script:?}]\n"
    );
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn runs_lists_shows_and_stops_a_detached_pod(node: &mut Node, _: &mut Registry) -> Result<()> {
    let file = manifest(node, "web", "echo line one; echo line two; sleep 1000")?;
    node.crisp(&["run", "--detach", &file])?;
    let listed = node.crisp(&["ps"])?;
    ensure!(listed.contains("web") && listed.contains("main"), "{listed}");
    eventually(SOON, || {
        let shown = node.crisp(&["logs", "web"])?;
        ensure!(shown.contains("line one") && shown.contains("line two"), "{shown}");
        Ok(())
    })?;
    same("exec", &node.crisp(&["exec", "web", "--", "echo", "inside"])?.as_str(), &"inside\n")?;
    ensure!(node.crisp(&["run", "--detach", &file]).is_err(), "the name is taken");
    node.crisp(&["run", "--detach", "--replace", &file])?;
    node.crisp(&["stop", "web"])?;
    same("pods", &node.cri.pods()?.len(), &0)?;
    ensure!(node.crisp(&["logs", "web"]).is_err(), "the pod is gone");
    Ok(())
}

/// What a pod of before a reboot left on the disk goes with the next run; a live pod's stays.
fn removes_what_forgotten_pods_left(node: &mut Node, _: &mut Registry) -> Result<()> {
    node.crisp(&["run", "--detach", &manifest(node, "stays", "sleep 1000")?])?;
    let local = node.dir().join("root/local");
    let left = local.join("00000000-1111-4222-8333-444444444444");
    fs::create_dir_all(left.join("volumes/v"))?;
    node.crisp(&["run", &manifest(node, "ends", "true")?])?;
    ensure!(!left.exists(), "{} is there", left.display());
    same("directories of live pods", &fs::read_dir(&local)?.count(), &1)?;
    node.crisp(&["stop", "--all"])?;
    same("directories", &fs::read_dir(&local)?.count(), &0)
}

fn exits_as_the_container_does(node: &mut Node, _: &mut Registry) -> Result<()> {
    let file = manifest(node, "fails", "echo on its way; exit 17")?;
    let crisp = paths::binaries().join("crisp");
    let done = Command::new(crisp).args(["run", &file]).env("CRISP_ADDRESS", node.socket()).output()?;
    same("exit code", &done.status.code(), &Some(17))?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(printed.contains("on its way"), "{printed}");
    same("pods", &node.cri.pods()?.len(), &0)
}

fn checks_this_machine(node: &mut Node, _: &mut Registry) -> Result<()> {
    let printed = node.crisp(&["check"])?;
    ensure!(printed.lines().count() > 5 && printed.contains("overlay"), "{printed}");
    // The plugin of the first file is nowhere, which keeps pods from running; a later file is only told of.
    let list = |name: &str| {
        format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "no-such-plugin"}}]}}"#)
    };
    let (config, conf_dir) = (node.dir().join("check.toml"), node.dir().join("check-cni"));
    fs::create_dir(&conf_dir)?;
    fs::write(conf_dir.join("10-first.conflist"), list("first"))?;
    fs::write(conf_dir.join("20-later.conflist"), list("later"))?;
    fs::write(&config, format!("[cni]\nconf_dir = {conf_dir:?}\n"))?;
    let crisp = paths::binaries().join("crisp");
    let done = Command::new(crisp).args(["check", "--config"]).arg(&config).output()?;
    same("exit code", &done.status.code(), &Some(1))?;
    let printed = String::from_utf8_lossy(&done.stdout).into_owned();
    let line = |file: &str| printed.lines().find(|line| line.contains(file)).unwrap_or_default();
    let (first, later) = (line("10-first"), line("20-later"));
    ensure!(first.starts_with("FAIL") && first.contains("needs no-such-plugin"), "{printed}");
    ensure!(later.starts_with("warn") && later.contains("is not used"), "{printed}");
    Ok(())
}

fn prints_a_configuration_that_it_accepts(node: &mut Node, _: &mut Registry) -> Result<()> {
    let file = node.dir().join("default.toml");
    fs::write(&file, node.crisp(&["config", "default"])?)?;
    node.crisp(&["config", "validate", &file.display().to_string()])?;
    fs::write(&file, "no_such_key = 1\n")?;
    let refused =
        node.crisp(&["config", "validate", &file.display().to_string()]).err().map(|error| error.to_string());
    ensure!(refused.as_ref().is_some_and(|text| text.contains("no_such_key")), "{refused:?}");
    Ok(())
}
