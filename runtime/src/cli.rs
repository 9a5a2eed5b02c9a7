//! The command line. Every subcommand but `serve`, `check`, `config`, `completions` and `man` is a thin client of the daemon's
//! socket: it could be written by anybody.

pub(crate) mod client;
pub(crate) mod error;
mod exec;
mod image;
mod interrupt;
pub(crate) mod labels;
mod leftovers;
mod log_file;
mod logs;
mod manifest;
pub(crate) mod output;
mod pods;
mod printer;
mod ps;
mod pull;
mod run;
mod stop;
mod ui;
mod volumes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, DEFAULT_SOCKET, Overrides};
use client::Client;
use error::{CliError, EXIT_FAILED, EXIT_NOT_RUN, Result, finish};

const EXAMPLES: &str = "\
Examples:
  crisp check                          can this machine run pods?
  crisp serve                          the daemon, in the foreground
  crisp run examples/pod.yaml          a Kubernetes Pod, until it ends or Ctrl-C
  crisp run --detach examples/pod.yaml
  crisp ps
  crisp logs -f web
  crisp exec web -c server -- ls /
  crisp stop web

Exit codes: 0 success, 1 failure, 2 wrong usage. `run` and `exec` exit as
their containers and commands do, with 124 when a timeout was up, 125 when
Crisp itself failed and 130 after Ctrl-C.";

/// Those that never talk to a daemon.
const WITHOUT_DAEMON: [&str; 4] = ["serve", "config", "completions", "man"];

/// Crisp, a Kubernetes container runtime: the daemon that kubelet and crictl talk to, and commands beside it.
#[derive(Debug, Parser)]
#[command(name = "crisp", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    /// The daemon's socket.
    #[arg(long, global = true, env = "CRISP_ADDRESS", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    address: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(ServeArgs),
    Check(CheckArgs),
    Run(RunArgs),
    Ps(PsArgs),
    Logs(LogsArgs),
    Exec(ExecArgs),
    Stop(StopArgs),
    /// Images of this machine: list, pull, import, remove.
    #[command(subcommand)]
    Image(ImageCommand),
    /// The daemon's configuration file.
    #[command(subcommand)]
    Config(ConfigCommand),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Run the daemon in the foreground.
///
/// Every flag is also a key of the configuration file, and wins over it. When it is ready it prints one line on stdout; logs go
/// to stderr. SIGTERM ends the daemon; pods run on, and the next daemon finds them again.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Configuration file [default: /etc/crisp/config.toml, which may be absent].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Unix socket to serve on [default: crisp.sock in the state directory].
    #[arg(long, value_name = "PATH")]
    listen: Option<PathBuf>,
    /// Directory of what survives a reboot [default: /var/lib/crisp].
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Directory of what ends with a reboot [default: /run/crisp].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// error, warn, info, debug, trace, or directives such as "info,crisp_image=debug" [default: info].
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

/// Say whether this machine can run pods, one line per thing, and what to do where it cannot.
///
/// Exit code 1 when something required is missing.
#[derive(Debug, Args)]
struct CheckArgs {
    /// Configuration file of the daemon [default: /etc/crisp/config.toml, which may be absent].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Run a Kubernetes Pod manifest on this machine.
///
/// Pulls what is missing, runs the init containers, starts the containers and shows their output until all have ended; then
/// removes the pod and exits with the code of the first container that failed. Ctrl-C stops and removes the pod, a second one
/// kills it.
///
/// A restartPolicy that the manifest says is honoured while this command runs; without one, containers are not started again.
/// Without a seccomp profile the runtime's default one is used. Fields that need a cluster are refused or warned of.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp run pod.yaml\n  crisp run --detach pod.yaml\n  kubectl get pod web -o yaml | crisp run -"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
struct RunArgs {
    /// The manifest, YAML or JSON; "-" is stdin.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Return when the containers are started; print the pod's id.
    #[arg(short, long)]
    detach: bool,
    /// Stop and remove a pod of this name first.
    #[arg(long)]
    replace: bool,
    /// Leave the ended pod, to look at it.
    #[arg(long, conflicts_with = "detach")]
    keep: bool,
    /// Only the containers' output and failures.
    #[arg(short, long)]
    quiet: bool,
}

/// List pods and their containers.
#[derive(Debug, Args)]
struct PsArgs {
    /// Also what has ended.
    #[arg(short, long)]
    all: bool,
    /// A table to read, or JSON for programs.
    #[arg(short, long, value_enum, default_value = "table", value_name = "FORMAT")]
    output: PsFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PsFormat {
    Table,
    Json,
}

/// Show what a pod's containers wrote.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
struct LogsArgs {
    /// Name, namespace/name, or the beginning of an id.
    pod: String,
    /// Only this container.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Go on with what is written, until the containers have ended.
    #[arg(short, long)]
    follow: bool,
    /// Begin with the last LINES lines of each container.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// Each line's time in front of it.
    #[arg(short, long)]
    timestamps: bool,
}

/// Run a command in a running container and show its output when it has ended.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  crisp exec web -- cat /etc/hosts\n  crisp exec web -c server --timeout 5 -- wget -qO- localhost"
)]
struct ExecArgs {
    /// Name, namespace/name, or the beginning of an id.
    pod: String,
    /// Which container; may be left out when only one runs.
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Kill the command after this many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    timeout: Option<u32>,
    /// The command and its arguments.
    #[arg(last = true, required = true, num_args = 1.., value_name = "COMMAND")]
    command: Vec<String>,
}

/// Stop and remove pods that `crisp run` made.
#[derive(Debug, Args)]
struct StopArgs {
    /// Name, namespace/name, or the beginning of an id.
    #[arg(value_name = "POD", required_unless_present = "all", conflicts_with = "all")]
    pods: Vec<String>,
    /// Every pod that `crisp run` made.
    #[arg(long)]
    all: bool,
    /// Seconds between the stop signal and the kill [default: the manifest's].
    #[arg(short = 't', long = "time", value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=86_400))]
    grace: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List images.
    Ls {
        /// Only the ids.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Pull an image; print its id.
    Pull {
        /// Name with tag or digest.
        image: String,
        /// User for the registry.
        #[arg(long, requires = "password_stdin", value_name = "NAME")]
        username: Option<String>,
        /// Read the password from the first line of stdin.
        #[arg(long, requires = "username")]
        password_stdin: bool,
    },
    /// Take images from an archive: an OCI layout (directory or tar) or what `docker save` writes; plain, gzip or zstd.
    Import {
        /// The archive or layout; the daemon reads it.
        file: PathBuf,
        /// Name for the image, for an archive that holds a single one.
        #[arg(long)]
        name: Option<String>,
    },
    /// Remove images.
    Rm {
        /// Names, digests or ids.
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a configuration file with every key, its default and its unit.
    Default,
    /// Check a configuration file.
    Validate {
        /// The file.
        #[arg(default_value = config::DEFAULT_FILE)]
        file: PathBuf,
    },
}

/// Print a shell's completions of this command line.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  crisp completions bash > /usr/share/bash-completion/completions/crisp")]
struct CompletionsArgs {
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Write the manual pages.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  crisp man | man -l -\n  crisp man --dir /usr/share/man/man1")]
struct ManArgs {
    /// Write crisp.1 and a page per subcommand here, instead of printing crisp(1).
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// The command line; `--address` is shown only where it means something.
fn definition() -> clap::Command {
    let command = Cli::command();
    let hidden = command.get_arguments().find(|argument| argument.get_id() == "address").cloned();
    let hidden = hidden.map(|address| address.hide(true));
    // A global flag does not reach a subcommand that has its own of that name.
    let hide = |command: clap::Command, name| command.mut_subcommand(name, |own| own.args(hidden.clone()));
    WITHOUT_DAEMON.into_iter().fold(command, hide)
}

fn parse(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let mut command = definition();
    let matches = command.try_get_matches_from_mut(arguments)?;
    if matches.value_source("address") == Some(ValueSource::CommandLine)
        && matches.subcommand_name().is_some_and(|name| WITHOUT_DAEMON.contains(&name))
    {
        let says = "--address is for commands that talk to a daemon; `crisp serve` listens on --listen";
        return Err(command.error(ErrorKind::ArgumentConflict, says));
    }
    Cli::from_arg_matches(&matches)
}

/// Parses the command line and runs the subcommand. `serve` is the daemon.
pub(crate) fn main(serve: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    let cli = parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let address = cli.address;
    match cli.command {
        Command::Serve(args) => match load(&args).and_then(as_root) {
            Ok(config) => serve(config),
            Err(error) => finish(Err(error), EXIT_FAILED),
        },
        Command::Check(args) => finish(crate::check::check(args.config.as_deref(), &address), EXIT_FAILED),
        Command::Config(command) => finish(configuration(&command), EXIT_FAILED),
        Command::Completions(args) => finish(completions(&args), EXIT_FAILED),
        Command::Man(args) => finish(man(&args), EXIT_FAILED),
        Command::Run(args) => {
            finish(block_on(connect(address, async |client| run::run(client, &args).await)), EXIT_NOT_RUN)
        }
        Command::Exec(args) => {
            finish(block_on(connect(address, async |client| exec::exec(client, &args).await)), EXIT_NOT_RUN)
        }
        Command::Ps(args) => {
            finish(block_on(connect(address, async |client| ps::ps(client, &args).await)), EXIT_FAILED)
        }
        Command::Logs(args) => {
            finish(block_on(connect(address, async |client| logs::logs(client, &args).await)), EXIT_FAILED)
        }
        Command::Stop(args) => {
            finish(block_on(connect(address, async |client| stop::stop(client, &args).await)), EXIT_FAILED)
        }
        Command::Image(command) => finish(
            block_on(connect(address, async |client| image::image(client, &command).await)),
            EXIT_FAILED,
        ),
    }
}

async fn connect(address: PathBuf, run: impl AsyncFnOnce(Client) -> Result<ExitCode>) -> Result<ExitCode> {
    run(Client::connect(&address).await?).await
}

/// One thread is enough for a client.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(CliError::io("start"))?.block_on(work)
}

fn load(args: &ServeArgs) -> Result<Config> {
    let flags = Overrides {
        listen: args.listen.clone(),
        root: args.root.clone(),
        state: args.state.clone(),
        log: args.log.clone(),
    };
    Ok(Config::load(args.config.as_deref(), &flags)?)
}

/// Without root the first thing that fails would be told instead of the reason.
fn as_root(config: Config) -> Result<Config> {
    if rustix::process::geteuid().is_root() {
        return Ok(config);
    }
    Err(CliError::Invalid("the daemon makes containers, which takes root: sudo crisp serve".to_owned()))
}

fn configuration(command: &ConfigCommand) -> Result<ExitCode> {
    match command {
        ConfigCommand::Default => output::bytes(config::DEFAULT_TOML.as_bytes())?,
        ConfigCommand::Validate { file } => {
            let config = Config::load(Some(file), &Overrides::default())?;
            let names: Vec<&str> = config.handlers.keys().map(String::as_str).collect();
            output::line(&format!("{} is valid; handlers: {}", file.display(), names.join(", ")))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn completions(args: &CompletionsArgs) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "crisp", &mut text);
    output::bytes(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn man(args: &ManArgs) -> Result<ExitCode> {
    // `crisp help` has no page of its own.
    let mut command = definition().disable_help_subcommand(true);
    command.build();
    match &args.dir {
        Some(dir) => std::fs::create_dir_all(dir)
            .and_then(|()| write_pages(&command, dir))
            .map_err(CliError::io(format!("write manual pages to {}", dir.display())))?,
        None => output::bytes(&page(&command).map_err(CliError::io("write the manual page"))?.1)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The page of a command and those of its subcommands.
fn write_pages(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    let (name, text) = page(command)?;
    std::fs::write(dir.join(name), text)?;
    command.get_subcommands().try_for_each(|below| write_pages(below, dir))
}

/// File name and text.
fn page(command: &clap::Command) -> std::io::Result<(String, Vec<u8>)> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    // What stands behind the options has no better name in the generator.
    Ok((
        page.get_filename(),
        text.replace("\n.SH EXTRA\n", "\n.SH EXAMPLES\n").replace("\nExamples:\n", "\n").into_bytes(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        super::parse(std::iter::once("crisp").chain(line.split_whitespace()).map(Into::into))
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn the_daemons_address_is_shown_where_a_daemon_is_asked() {
        let help = |line: &str| parse(line).unwrap_err().to_string();
        for line in ["ps --help", "image pull --help", "check --help", "--help"] {
            assert!(help(line).contains("--address"), "{line}");
        }
        for line in ["serve --help", "man --help", "config --help", "config validate --help"] {
            assert!(!help(line).contains("--address"), "{line}: {}", help(line));
        }
    }

    #[test]
    fn command_lines_of_the_documentation_are_accepted() {
        for line in EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("crisp ")) {
            let line = line.split("  ").next().unwrap_or_default();
            parse(line).unwrap_or_else(|error| panic!("crisp {line}: {error}"));
        }
        for line in [
            "serve --config /f --listen /s --root /r --state /t --log debug",
            "run - --keep --replace -q",
            "ps -a -o json --address /x.sock",
            "logs web -c server -n 10 -t -f",
            "exec web --timeout 3 -- sh -c x",
            "stop --all -t 0",
            "image import a.tar --name busybox:local",
            "image pull busybox --username u --password-stdin",
            "config validate /etc/crisp/config.toml",
            "completions zsh",
            "man --dir /tmp",
            "--address /x.sock ps",
        ] {
            parse(line).unwrap_or_else(|error| panic!("crisp {line}: {error}"));
        }
    }

    #[test]
    fn there_is_a_page_for_every_command() {
        let dir = tempfile::tempdir().unwrap();
        man(&ManArgs { dir: Some(dir.path().to_owned()) }).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("crisp-image-pull.1").contains("password"));
        let crisp = read("crisp.1");
        assert!(crisp.contains(".SH EXAMPLES") && crisp.contains("can this machine run pods?"), "{crisp}");
        assert!(
            !crisp.contains("EXTRA") && !crisp.contains("Examples:") && !crisp.contains("help(1)"),
            "{crisp}"
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "",
            "stop",
            "stop web --all",
            "exec web",
            "exec web --",
            "run a --detach --keep",
            "exec w --timeout 0 -- x",
            "image rm",
            "serve --address /s",
            "--address /s serve",
            "config default --address /s",
        ] {
            assert!(parse(line).is_err(), "crisp {line}");
        }
    }
}
