//! The tests in a virtual machine that `vm/vmtest` boots: a node with systemd, cgroup v2 and AppArmor or SELinux.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::run;
use crate::conformance::{self, Column, Suite};
use crate::images::{Compression, Tree, catalog, layer};
use crate::{paths, say};

/// What scripts may take together, in seconds; the processor is emulated.
const SCRIPTS_SECONDS: u32 = 3600;
/// The same for the conformance suite.
const CRITEST_SECONDS: u32 = 3 * 3600;
/// Memory of the machine, in MiB.
const MEMORY: &str = "3072";
/// Specs that run at once: most of them wait, but two emulated processors are soon busy.
const PARALLEL: u8 = 3;

/// What is run in the machine; without a flag the smoke test, and what containers see of the default AppArmor profile.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Options {
    /// Run critest, and compare with the column v2 of CONFORMANCE.md.
    #[arg(long, conflicts_with_all = ["smoke", "systemd", "apparmor", "checkpoint"])]
    critest: bool,
    /// Boot with SELinux (permissive, Debian's policy) instead of AppArmor, and run the SELinux specs of critest.
    #[arg(long, conflicts_with_all = ["smoke", "systemd", "apparmor", "checkpoint"])]
    selinux: bool,
    /// Run the smoke test; of use beside other flags.
    #[arg(long)]
    smoke: bool,
    /// Run the daemon as a service whose containers are scopes of systemd, and time both cgroup drivers.
    #[arg(long)]
    systemd: bool,
    /// Run all checks of AppArmor, for each handler.
    #[arg(long)]
    apparmor: bool,
    /// Checkpoint and restore containers through CRIU.
    #[arg(long)]
    checkpoint: bool,
    #[command(flatten)]
    suite: Suite,
}

/// Runs what the options say; whether it went well.
///
/// # Errors
/// When the machine cannot be built, or the suite gives no report.
pub fn run_in(options: Options) -> Result<bool> {
    let module = if options.selinux { Module::SeLinux } else { Module::AppArmor };
    match options.critest || options.selinux {
        true => critest(module, options.suite),
        false => run_scripts(&chosen(&options)),
    }
}

/// A script in the folder `vm`, which runs in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Script {
    file: &'static str,
    arguments: &'static str,
}

impl Script {
    /// In the machine's shell: runs it, says how long that took, remembers whether it failed.
    fn command(&self) -> String {
        let Self { file, arguments } = self;
        format!(
            "began=$(date +%s)\nsh /share/{file} {arguments} || failed=yes\necho \"{file}: $(($(date +%s) - began)) s\"\n"
        )
    }
}

/// A pod's life on this kind of node.
const SMOKE: Script = Script { file: "smoke.sh", arguments: "" };
/// The default profile for the built-in handler.
const APPARMOR_SHORT: Script = Script { file: "apparmor.sh", arguments: "short" };
const APPARMOR: Script = Script { file: "apparmor.sh", arguments: "" };
const CHECKPOINT: Script = Script { file: "checkpoint.sh", arguments: "" };
const SYSTEMD: Script = Script { file: "systemd.sh", arguments: "" };

fn chosen(options: &Options) -> Vec<Script> {
    let flags = [
        (options.smoke, SMOKE),
        (options.systemd, SYSTEMD),
        (options.apparmor, APPARMOR),
        (options.checkpoint, CHECKPOINT),
    ];
    let named: Vec<Script> = flags.into_iter().filter_map(|(flag, script)| flag.then_some(script)).collect();
    if named.is_empty() { vec![SMOKE, APPARMOR_SHORT] } else { named }
}

/// The security module that the machine boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Module {
    AppArmor,
    SeLinux,
}

impl Module {
    /// Arguments of `vmtest` that say what is in the image.
    fn image(self) -> &'static [&'static str] {
        match self {
            Self::AppArmor => &[],
            Self::SeLinux => &["--add", "selinux-policy-default", "--add", "policycoreutils"],
        }
    }

    /// Arguments of `vmtest` for the kernel's command line.
    fn kernel(self) -> &'static [&'static str] {
        match self {
            Self::AppArmor => &[],
            Self::SeLinux => &[
                "--append",
                "lsm=landlock,lockdown,yama,selinux,bpf",
                "--append",
                "selinux=1",
                "--append",
                "enforcing=0",
            ],
        }
    }
}

fn run_scripts(scripts: &[Script]) -> Result<bool> {
    let share = stage(&scripts.iter().map(|script| script.file).collect::<Vec<_>>())?;
    stage_service(&share)?;
    let commands: String = scripts.iter().map(Script::command).collect();
    let commands = format!("failed=\n{commands}[ -z \"$failed\" ]");
    let passed = boot(Module::AppArmor, SCRIPTS_SECONDS, &share, &commands, &[])?;
    say!("vm: {}", if passed { "passed" } else { "FAILED" });
    Ok(passed)
}

fn critest(module: Module, suite: Suite) -> Result<bool> {
    let suite = Suite { column: Column::V2, ..suite };
    let suite = match (module, &suite.focus) {
        (Module::SeLinux, None) => Suite { focus: Some("SELinux".to_owned()), ..suite },
        _ => suite,
    };
    let share = stage(&["critest.sh"])?;
    stage_critest(&share, &suite)?;
    let arguments = arguments(&suite);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let passed = boot(module, CRITEST_SECONDS, &share, "exec sh /share/critest.sh \"$@\"", &arguments)?;
    let reports = paths::reports();
    fs::create_dir_all(&reports)?;
    for name in ["critest.json", "critest.log", "daemon.log"] {
        // What is missing is told by what the machine printed.
        drop(fs::copy(share.join("out").join(name), reports.join(format!("vm-{name}"))));
    }
    ensure!(share.join("out/critest.json").exists(), "critest made no report in the machine");
    Ok(conformance::judge(&reports.join("vm-critest.json"), &suite)? && passed)
}

/// Boots the machine and runs a shell's script in it; whether that ended with 0.
fn boot(module: Module, seconds: u32, share: &Path, script: &str, arguments: &[&str]) -> Result<bool> {
    let vmtest = paths::crate_dir().join("vm/vmtest");
    run(Command::new(&vmtest).arg("build").args(module.image())).context("build the machine")?;
    let status = Command::new(&vmtest)
        .arg("run")
        .args(module.image())
        .args(module.kernel())
        .args(["--timeout", &seconds.to_string(), "--memory", MEMORY, "--share"])
        .arg(format!("{}:/share", share.display()))
        .args(["--", "sh", "-c", script, "sh"])
        .args(arguments)
        .status()?;
    Ok(status.success())
}

/// Arguments of `critest.sh`: ginkgo's, and those of the suite.
fn arguments(suite: &Suite) -> Vec<String> {
    let mut list = ["--no-color", "--timeout=3h", "--skip=benchmark"].map(str::to_owned).to_vec();
    list.extend([format!("--nodes={PARALLEL}"), format!("--seed={}", suite.seed)]);
    if suite.seed != 1 {
        list.push("--randomize-all".to_owned());
    }
    list.extend(suite.focus.as_ref().map(|focus| format!("--focus={focus}")));
    list.push("--".to_owned());
    list.extend(suite.flags(Path::new(NRI_SOCKET)));
    list
}

/// Where the daemon in the machine has its plugins' socket.
const NRI_SOCKET: &str = "/run/nri.sock";

/// Puts what every test in the machine needs into a folder.
fn stage(scripts: &[&str]) -> Result<PathBuf> {
    let share = paths::cache().join("vm-share");
    if share.exists() {
        fs::remove_dir_all(&share)?;
    }
    fs::create_dir_all(&share)?;
    for name in ["crisp", "crisp-shim"] {
        fs::copy(paths::binaries().join(name), share.join(name)).with_context(|| format!("copy {name}"))?;
    }
    fs::copy(paths::tools().join("crictl"), share.join("crictl")).context("copy crictl")?;
    for name in scripts.iter().chain(&["node.sh"]) {
        fs::copy(paths::crate_dir().join("vm").join(name), share.join(name))?;
    }
    fs::write(share.join("busybox.tar"), busybox_archive()?)?;
    Ok(share)
}

/// The daemon as a service, and this program, whose clock it is timed by.
fn stage_service(share: &Path) -> Result<()> {
    fs::copy(paths::repository().join("docs/crisp.service"), share.join("crisp.service"))
        .context("copy crisp.service")?;
    fs::copy(std::env::current_exe()?, share.join("crictl-tests")).context("copy this program")?;
    Ok(())
}

/// The suite, the registry and its images.
fn stage_critest(share: &Path, suite: &Suite) -> Result<()> {
    let critest = suite.program.clone().unwrap_or_else(|| paths::tools().join("critest"));
    fs::copy(critest, share.join("critest.test")).context("copy critest")?;
    fs::copy(paths::tools().join("ginkgo"), share.join("ginkgo")).context("copy ginkgo")?;
    fs::copy("/usr/bin/docker-registry", share.join("docker-registry")).context("copy the registry")?;
    let store = paths::images().join("store");
    ensure!(store.exists(), "no images at {}: run `crictl-tests prepare` first", store.display());
    run(Command::new("cp").arg("-a").arg(store).arg(share.join("store")))?;
    let mut config = "[registry]\nconfig_path = [\"/run/certs.d\"]\n".to_owned();
    if suite.nri {
        config.push_str(&format!(
            "[nri]\nenabled = true\nsocket = \"{NRI_SOCKET}\"\nrequest_timeout = \"60s\"\n"
        ));
    }
    fs::write(share.join("config.toml"), config)?;
    fs::create_dir(share.join("out")).map_err(Into::into)
}

/// An image of this machine's static busybox as `docker save` writes it.
fn busybox_archive() -> Result<Vec<u8>> {
    let mut tree = Tree::default().file("bin/busybox", fs::read("/bin/busybox")?, 0o755).dir("tmp", 0o1777);
    for applet in [
        "sh", "sleep", "echo", "cat", "wget", "httpd", "ip", "true", "ls", "usleep", "id", "dd", "mount",
        "kill",
    ] {
        tree = tree.link(&format!("bin/{applet}"), "busybox");
    }
    let tar = tree.tar()?;
    let packed = layer::Layer::of_tar(&tar, Compression::OciPlain)?;
    let config = serde_json::json!({
        "architecture": catalog::architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [packed.diff_id]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["example.org/busybox:1"], "Layers": ["layer.tar"]}]);
    Tree::default()
        .file("config.json", serde_json::to_vec(&config)?, 0o644)
        .file("layer.tar", tar, 0o644)
        .file("manifest.json", serde_json::to_vec(&manifest)?, 0o644)
        .tar()
}
