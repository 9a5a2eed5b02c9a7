//! `crisp logs`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, Result};
use super::log_file::LogReader;
use super::printer::{Printer, Style, prefixes};
use super::{LogsArgs, pods};

/// How often growing files are looked at. The file is the truth: a lost notification would lose a line.
pub(super) const LOG_POLL: Duration = Duration::from_millis(50);
/// How often the states are asked for while following.
pub(super) const STATE_POLL: Duration = Duration::from_millis(100);

/// A container's log and how it is shown.
#[derive(Debug)]
struct Source {
    container_id: String,
    reader: LogReader,
    printer: Printer,
    running: bool,
}

impl Source {
    fn poll(&mut self) -> Result<()> {
        let Self { reader, printer, .. } = self;
        reader.poll(&mut |entry| printer.print(entry))
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::io("read the container's log")(error)
    }
}

pub(super) async fn logs(mut client: Client, args: &LogsArgs) -> Result<ExitCode> {
    let pod = pods::find(&mut client, &args.pod).await?;
    let containers = pods::containers(&mut client, &pod.id).await?;
    let chosen: Vec<&cri::Container> = match &args.container {
        Some(name) => vec![pods::choose_container(&containers, Some(name))?],
        None => containers.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(CliError::Invalid(format!("pod {} has no container", pods::full_name(&pod))));
    }
    let mut sources = open(&mut client, &chosen, args).await?;
    for source in &mut sources {
        source.poll()?;
    }
    if args.follow {
        follow(&mut client, &mut sources).await?;
    }
    for source in &mut sources {
        source.printer.finish()?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn open(client: &mut Client, containers: &[&cri::Container], args: &LogsArgs) -> Result<Vec<Source>> {
    let names: Vec<&str> = containers.iter().map(|container| pods::name(container)).collect();
    let mut sources = Vec::new();
    for (container, prefix) in containers.iter().zip(prefixes(&names)) {
        let status = client.container_status(&container.id).await?;
        if status.log_path.is_empty() {
            let name = pods::name(container);
            return Err(CliError::Invalid(format!(
                "container {name} keeps no log: it was made without a log path"
            )));
        }
        let mut reader = LogReader::new(Path::new(&status.log_path));
        if let Some(lines) = args.tail {
            reader.skip_to_last(lines)?;
        }
        sources.push(Source {
            container_id: container.id.clone(),
            reader,
            printer: Printer::new(Style { prefix, timestamps: args.timestamps }),
            running: status.state() != cri::ContainerState::ContainerExited,
        });
    }
    Ok(sources)
}

/// Prints what comes until every container has ended. Ctrl-C ends it as any command.
async fn follow(client: &mut Client, sources: &mut [Source]) -> Result<()> {
    let mut read = tokio::time::interval(LOG_POLL);
    let mut ask = tokio::time::interval(STATE_POLL);
    while sources.iter().any(|source| source.running) {
        tokio::select! {
            _ = read.tick() => {}
            _ = ask.tick() => {
                let living = client.containers(cri::ContainerFilter::default()).await?;
                for source in sources.iter_mut() {
                    let found = living.iter().find(|container| container.id == source.container_id);
                    source.running = found.is_some_and(|c| c.state() != cri::ContainerState::ContainerExited);
                }
            }
        }
        // After the states: what was written before an end is read after it.
        for source in sources.iter_mut() {
            source.poll()?;
        }
    }
    Ok(())
}
