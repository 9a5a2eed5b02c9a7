//! `crisp run`: a Pod manifest on this machine, through the daemon's socket.
//!
//! ```text
//! plan ─▶ images ─▶ volumes ─▶ sandbox ─▶ init containers, in order ─▶ containers ─▶ follow ─▶ end
//!          └ Ctrl-C: nothing to undo       └────── Ctrl-C or a failure: end ──────────┘
//! ```
//! `end` stops and removes all that was made. With `--detach` it is left to `crisp stop`.

mod session;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crisp_domain::SandboxId;
use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, EXIT_INTERRUPTED, Result};
use super::interrupt::Interrupts;
use super::manifest::{Host, MANIFEST_BYTES_MAX, Plan};
use super::ui::Ui;
use super::{RunArgs, labels, leftovers, output, pods, pull, stop, volumes};
use session::{End, Session};

pub(super) async fn run(mut client: Client, args: &RunArgs) -> Result<ExitCode> {
    let ui = Ui { quiet: args.quiet };
    let root = PathBuf::from(client.describe().await?.root);
    let plan = plan(&args.file, &root)?;
    for warning in &plan.warnings {
        ui.warn(warning)?;
    }
    if args.detach && plan.restarts {
        ui.warn("restartPolicy: with --detach nobody starts a container that ended again")?;
    }
    if let Err(error) = leftovers::remove(&mut client, &root).await {
        ui.warn(&error.to_string())?;
    }
    make_room(&mut client, &plan, args, &root, ui).await?;
    let interrupts = Interrupts::listen()?;
    tokio::select! {
        () = interrupts.reach(1) => return Err(CliError::Exit(EXIT_INTERRUPTED)),
        done = fetch(&mut client, &plan, ui) => done?,
    }
    let data = volumes::data_dir(&root, &plan.uid)?;
    let mut session = Session::new(client.clone(), &plan, &interrupts, ui);
    let outcome = live(&mut session, &plan, &data, args).await;
    if let Ok(End::Detached) = outcome {
        return detached(&session, &plan, ui);
    }
    if args.keep && session.pod().is_some() {
        ui.step("keep", &format!("{0}/{1}; `crisp stop {0}/{1}` removes it", plan.namespace, plan.name))?;
    } else {
        let ended = tear_down(&client, &mut session, &plan, &root, &outcome).await;
        ended.or_else(|error| output::err_line(&format!("crisp: {error}")).and(Err(CliError::Exit(1))))?;
    }
    match outcome? {
        End::Done(code) => Ok(code.into()),
        End::Interrupted => Ok(EXIT_INTERRUPTED.into()),
        End::Detached => Ok(ExitCode::SUCCESS),
    }
}

fn plan(file: &Path, root: &Path) -> Result<Plan> {
    let text = read_manifest(file)?;
    let uid = random_uuid()?;
    let host = Host {
        data: volumes::data_dir(root, &uid)?,
        uid,
        hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    Plan::from_text(&text, &host).map_err(|source| CliError::Manifest { path: file.to_owned(), source })
}

/// The file's text; `-` is stdin.
fn read_manifest(file: &Path) -> Result<String> {
    let doing = || CliError::io(format!("read {}", file.display()));
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text).map_err(doing())?;
    } else {
        let opened = std::fs::File::open(file).map_err(doing())?;
        opened.take(MANIFEST_BYTES_MAX + 1).read_to_string(&mut text).map_err(doing())?;
    }
    if text.len() as u64 > MANIFEST_BYTES_MAX {
        return Err(CliError::Invalid(format!(
            "{} is larger than {MANIFEST_BYTES_MAX} bytes",
            file.display()
        )));
    }
    Ok(text)
}

/// Version 4 of RFC 9562, from the random digits of an id.
fn random_uuid() -> Result<String> {
    let id = SandboxId::random().map_err(|error| CliError::Invalid(format!("no random numbers: {error}")))?;
    let hex = id.as_str();
    Ok(format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[12..15], &hex[15..18], &hex[18..30]))
}

/// A name belongs to one pod of `crisp run` at a time.
async fn make_room(client: &mut Client, plan: &Plan, args: &RunArgs, root: &Path, ui: Ui) -> Result<()> {
    let selector = [
        (labels::MANAGED_BY, labels::MANAGED_BY_RUN),
        (labels::POD_NAME, &plan.name),
        (labels::POD_NAMESPACE, &plan.namespace),
    ];
    let label_selector =
        selector.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    let holders = client.pods(cri::PodSandboxFilter { label_selector, ..Default::default() }).await?;
    for pod in &holders {
        let name = pods::full_name(pod);
        if !args.replace && pod.state() == cri::PodSandboxState::SandboxReady {
            let help = format!("`crisp stop {name}` ends it, --replace does it for you");
            return Err(CliError::Invalid(format!("pod {name} runs already; {help}")));
        }
        stop::end(client.clone(), pod, root, plan.grace_seconds).await?;
        ui.step("stop", &format!("{name}, the old one"))?;
    }
    Ok(())
}

async fn fetch(client: &mut Client, plan: &Plan, ui: Ui) -> Result<()> {
    for image in &plan.images {
        pull::ensure(client, image, ui).await?;
    }
    for container in plan.init.iter().chain(&plan.containers).filter(|container| container.must_not_be_root) {
        let image = client.image(&container.image).await?.unwrap_or_default();
        let name = &container.name;
        let root = image.uid.as_ref().map_or(image.username.is_empty(), |uid| uid.value == 0);
        if root || image.username == "root" {
            let problem =
                format!("container {name} must not be root (runAsNonRoot), but image {} is", container.image);
            return Err(CliError::Invalid(problem));
        }
        if image.uid.is_none() {
            let problem = format!(
                "container {name}: runAsNonRoot cannot judge the user {:?}; set runAsUser",
                image.username
            );
            return Err(CliError::Invalid(problem));
        }
    }
    Ok(())
}

async fn live(session: &mut Session<'_>, plan: &Plan, data: &Path, args: &RunArgs) -> Result<End> {
    let _until_the_pod_exists = leftovers::claim(data)?;
    volumes::prepare(data, &plan.volumes)?;
    session.start_pod().await?;
    if let Some(end) = session.run_init_containers().await? {
        return Ok(end);
    }
    session.start_containers().await?;
    if args.detach { Ok(End::Detached) } else { session.follow().await }
}

fn detached(session: &Session<'_>, plan: &Plan, ui: Ui) -> Result<ExitCode> {
    let name = format!("{}/{}", plan.namespace, plan.name);
    ui.step("run", &format!("{name}; next: `crisp logs -f {name}`, `crisp stop {name}`"))?;
    output::line(session.pod().map_or("", |pod| pod.id.as_str()))?;
    Ok(ExitCode::SUCCESS)
}

/// Removes what was made; what the containers say while they stop is shown.
async fn tear_down(
    client: &Client,
    session: &mut Session<'_>,
    plan: &Plan,
    root: &Path,
    outcome: &Result<End>,
) -> Result<()> {
    let Some(pod) = session.pod().cloned() else {
        return volumes::remove(&volumes::data_dir(root, &plan.uid)?);
    };
    if matches!(outcome, Ok(End::Interrupted)) {
        session.stop_containers().await?;
    }
    stop::end(client.clone(), &pod, root, plan.grace_seconds).await?;
    session.ui().step("remove", &format!("{}/{}", plan.namespace, plan.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_well_formed_and_different() {
        let (one, two) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert_ne!(one, two);
        assert!(volumes::data_dir(Path::new("/"), &one).is_ok(), "{one}");
        assert_eq!((one.as_bytes()[14], one.as_bytes()[19]), (b'4', b'8'));
    }

    #[test]
    fn a_manifest_is_read_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod.yaml");
        std::fs::write(&path, "x".repeat(usize::try_from(MANIFEST_BYTES_MAX).unwrap() + 1)).unwrap();
        assert!(read_manifest(&path).unwrap_err().to_string().contains("larger than"));
        assert!(read_manifest(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
