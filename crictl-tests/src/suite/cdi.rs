//! Devices that vendors describe.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use tonic::Code;

use super::tests;
use crate::node::{Node, Options, same};
use crate::registry::Registry;

tests![
    #[options(described)]
    a_device_brings_all_that_it_needs,
    #[options(described)]
    old_kubelets_name_devices_by_annotation,
    #[options(described)]
    a_device_that_nothing_describes_is_named,
];

fn described() -> Options {
    let more = "[cdi]\nspec_dirs = [\"/run/t/1/cdi\", \"/run/t/1/cdi-run\"]\n".to_owned();
    Options { more, ..Options::default() }
}

/// Two devices in a file: what both need, and what each needs.
fn describe(node: &Node) -> Result<()> {
    let dir = node.dir().join("cdi");
    fs::create_dir_all(&dir)?;
    fs::write(node.dir().join("driver"), "of the vendor\n")?;
    let driver = node.dir().join("driver").display().to_string();
    let file = format!(
        "cdiVersion: 0.6.0\nkind: vendor.example/toy\ncontainerEdits:\n  env: [\"TOY=yes\"]\n  mounts:\n  - hostPath: {driver}\n    \
         containerPath: /opt/toy/driver\n    options: [ro, bind]\ndevices:\n- name: one\n  containerEdits:\n    deviceNodes:\n    \
         - path: /dev/toy-zero\n      hostPath: /dev/zero\n      permissions: r\n    additionalGids: [4711]\n- name: two\n  \
         containerEdits:\n    env: [\"TWO=too\"]\n"
    );
    fs::write(dir.join("vendor.yaml"), file)?;
    Ok(())
}

fn named(node: &Node, names: &[&str]) -> cri::ContainerConfig {
    let mut config = node.container("c", &["sleep", "1000"]);
    config.cdi_devices = names.iter().map(|name| cri::CdiDevice { name: (*name).to_owned() }).collect();
    config
}

fn a_device_brings_all_that_it_needs(node: &mut Node, _: &mut Registry) -> Result<()> {
    describe(node)?;
    let pod = node.run(node.pod("toys"))?;
    let id = node.launch(&pod, &named(node, &["vendor.example/toy=one", "vendor.example/toy=two"]))?;
    let env = node.exec(&id, &["env"])?;
    ensure!(env.contains("TOY=yes") && env.contains("TWO=too"), "{env}");
    same("mount", &node.exec(&id, &["cat", "/opt/toy/driver"])?, &"of the vendor\n".to_owned())?;
    same(
        "read",
        &node.exec(&id, &["sh", "-c", "head -c 3 /dev/toy-zero | od -An -tx1"])?.trim().to_owned(),
        &"00 00 00".to_owned(),
    )?;
    let groups = node.exec(&id, &["id", "-G"])?;
    ensure!(groups.split_whitespace().any(|group| group == "4711"), "{groups}");
    // Changed files are seen without a restart.
    let text = fs::read_to_string(node.dir().join("cdi/vendor.yaml"))?;
    fs::create_dir_all(node.dir().join("cdi-run"))?;
    fs::write(node.dir().join("cdi-run/later.yaml"), text.replace("TOY=yes", "TOY=later"))?;
    let mut again = named(node, &["vendor.example/toy=two"]);
    again.metadata.get_or_insert_default().name = "again".to_owned();
    let id = node.launch(&pod, &again)?;
    let env = node.exec(&id, &["env"])?;
    ensure!(env.contains("TOY=later"), "{env}");
    Ok(())
}

fn old_kubelets_name_devices_by_annotation(node: &mut Node, _: &mut Registry) -> Result<()> {
    describe(node)?;
    let pod = node.run(node.pod("annotated"))?;
    let mut config = node.container("c", &["sleep", "1000"]);
    config
        .annotations
        .insert("cdi.k8s.io/toys".to_owned(), "vendor.example/toy=two,vendor.example/toy=one".to_owned());
    let id = node.launch(&pod, &config)?;
    let env = node.exec(&id, &["env"])?;
    ensure!(env.contains("TWO=too"), "{env}");
    node.exec(&id, &["test", "-c", "/dev/toy-zero"])?;
    Ok(())
}

fn a_device_that_nothing_describes_is_named(node: &mut Node, _: &mut Registry) -> Result<()> {
    describe(node)?;
    fs::write(node.dir().join("cdi/broken.json"), "{")?;
    let pod = node.run(node.pod("unknown"))?;
    let refused = |config: &cri::ContainerConfig| {
        node.cri.create(&pod.id, config, &pod.config).err().context("a container without its device is made")
    };
    let unknown = refused(&named(node, &["vendor.example/toy=two", "vendor.example/toy=seven"]))?;
    ensure!(unknown.message().contains("vendor.example/toy=seven"), "{unknown}");
    // NOT_FOUND would say that the pod is gone.
    same("code", &unknown.code(), &Code::Internal)?;
    let malformed = refused(&named(node, &["toy"]))?;
    same("code", &malformed.code(), &Code::InvalidArgument)?;
    fs::copy(node.dir().join("cdi/vendor.yaml"), node.dir().join("cdi/copy.yaml"))?;
    let twice = refused(&named(node, &["vendor.example/toy=two"]))?;
    ensure!(twice.message().contains("copy.yaml") && twice.message().contains("vendor.yaml"), "{twice}");
    fs::remove_file(node.dir().join("cdi/copy.yaml"))?;
    node.launch(&pod, &named(node, &["vendor.example/toy=two"]))?;
    let log = fs::read_to_string(node.log_path())?;
    same("logged once", &log.matches("broken.json").count(), &1)?;
    let info = node.crictl_json(&["info"])?;
    ensure!(info["cdi"].to_string().contains("broken.json"), "{info}");
    Ok(())
}
