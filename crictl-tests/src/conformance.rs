//! critest, and the comparison of its outcome with `CONFORMANCE.md`, which says how every spec ends on every kind of node.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::node::{Node, Options};
use crate::paths;
use crate::registry::Registry;
use crate::say;
use crate::suite::REGISTRY_PORT;

/// Specs that run at once: most of them wait most of the time.
const PARALLEL: u8 = 4;
const HEADER: &str = "# Conformance

How every spec of [critest](https://github.com/kubernetes-sigs/cri-tools) ends: `pass`, `fail`, `skip` (the spec skips itself), `-`
(not run). `crictl-tests critest` runs the suite and compares its column, both ways: what is not so fails the run.
`--update` writes the column. What does not pass has a note.

| Column | Node |
|---|---|
| v1 | cgroup v1, no systemd, no AppArmor, no SELinux; the built-in handler |
| v2 | cgroup v2, systemd, AppArmor: the virtual machine of `crictl-tests vm --critest`; the built-in handler |
| runc, crun | as v1, by these handlers |

The suite is cri-tools as pinned in `tools/go.mod`, with images built from Debian packages (`src/images/catalog.rs`). Rows whose note
begins with \"newer:\" are specs of its main branch, run with `--program`.

| Spec | v1 | v2 | runc | crun | Note |
|---|---|---|---|---|---|
";
/// Why a spec that the focus leaves out was skipped.
const UNSELECTED: &str = "not selected";
/// Begins the note of a spec that the pinned suite does not have.
const NEWER: &str = "newer:";

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Column {
    /// cgroup v1, the built-in handler.
    V1,
    /// cgroup v2 with systemd and AppArmor, the built-in handler.
    V2,
    /// cgroup v1, runc.
    Runc,
    /// cgroup v1, crun.
    Crun,
}

impl Column {
    /// In the order of the enum.
    const COUNT: usize = 4;

    fn handler(self) -> Option<&'static str> {
        match self {
            Self::V1 | Self::V2 => None,
            Self::Runc => Some("runc"),
            Self::Crun => Some("crun"),
        }
    }
}

/// How the suite is run.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Suite {
    /// Run only specs that match this regular expression; nothing is compared then.
    #[arg(long)]
    pub(crate) focus: Option<String>,
    /// The column of CONFORMANCE.md, which chooses the handler.
    #[arg(long, value_enum, default_value = "v1")]
    pub(crate) column: Column,
    /// Write the column anew.
    #[arg(long)]
    pub(crate) update: bool,
    /// Order of the specs; with another number than 1 all of them are shuffled.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Exec, attach and port-forward over WebSocket instead of SPDY.
    #[arg(long)]
    pub(crate) websocket: bool,
    /// With plugins by NRI; a suite that knows no NRI refuses it.
    #[arg(long)]
    pub(crate) nri: bool,
    /// Another critest program, built from a newer suite; what the pinned one does not have is noted as newer.
    #[arg(long)]
    pub(crate) program: Option<PathBuf>,
}

impl Suite {
    /// The flags of critest itself, but for those that say where the daemon is.
    pub(crate) fn flags(&self, nri_socket: &Path) -> Vec<String> {
        let mut flags = Vec::new();
        if let Some(handler) = self.column.handler() {
            flags.push(format!("-runtime-handler={handler}"));
        }
        if self.websocket {
            flags.extend(["exec", "attach", "portforward"].map(|what| format!("-websocket-{what}")));
        }
        if self.nri {
            flags.push(format!("-nri-socket={}", nri_socket.display()));
        }
        flags
    }
}

/// How a spec ended, in the words of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome {
    result: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    failure: Failure,
    #[serde(default)]
    run_time: u64,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// Runs critest; whether reality and table agree. With a focus only matching specs run and nothing is compared.
///
/// # Errors
/// When the node does not start or critest gives no report.
pub fn run(suite: &Suite) -> Result<bool> {
    let mut registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    let nri = "[nri]\nenabled = true\nsocket = \"/run/t/1/nri.sock\"\nrequest_timeout = \"30s\"\n";
    let more = if suite.nri { nri.to_owned() } else { String::new() };
    let mut node = Node::start("critest", 1, &registry, &Options { more, ..Options::default() })?;
    let report = critest(&node, suite);
    let left = node.finish();
    registry.stop()?;
    let agreed = judge(&report?, suite);
    if let Err(error) = left {
        node.keep_log();
        say!("after critest: {error:#}");
        return Ok(false);
    }
    agreed
}

/// Compares a report of critest, or writes it down; whether they agree.
///
/// # Errors
/// When the report or the table cannot be read.
pub fn judge(report: &Path, suite: &Suite) -> Result<bool> {
    let specs = parse(&fs::read_to_string(report)?)?;
    summary(&specs);
    if suite.focus.is_some() && !suite.update {
        return Ok(specs.values().all(|outcome| outcome.result != "fail"));
    }
    let path = paths::crate_dir().join("CONFORMANCE.md");
    let mut table = Table::read(&fs::read_to_string(&path).unwrap_or_default())?;
    if suite.update {
        table.take(suite, &specs);
        fs::write(&path, table.write())?;
        return Ok(true);
    }
    let differences = table.compare(suite, &specs);
    for line in &differences {
        say!("CONFORMANCE.md: {line}");
    }
    say!("{} differences from CONFORMANCE.md", differences.len());
    Ok(differences.is_empty())
}

fn critest(node: &Node, suite: &Suite) -> Result<PathBuf> {
    let reports = paths::reports();
    fs::create_dir_all(&reports)?;
    let report = reports.join("critest.json");
    drop(fs::remove_file(&report));
    let program = node.dir().join("critest.test");
    let critest = suite.program.clone().unwrap_or_else(|| paths::tools().join("critest"));
    std::os::unix::fs::symlink(critest, &program)?;
    let empty = node.dir().join("crictl.yaml");
    fs::write(&empty, "")?;
    let log = fs::File::create(reports.join("critest.log"))?;
    let mut command = Command::new(paths::tools().join("ginkgo"));
    command.args(["--nodes", &PARALLEL.to_string(), "--seed", &suite.seed.to_string(), "--timeout", "2h"]);
    command.args(["--no-color", "--skip", "benchmark", "--json-report", "critest.json"]);
    command.arg("--output-dir").arg(&reports);
    if suite.seed != 1 {
        command.arg("--randomize-all");
    }
    if let Some(focus) = &suite.focus {
        command.args(["--focus", focus]);
    }
    command.arg(&program).arg("--").args(flags(node, suite));
    command.arg("-config").arg(&empty).stdout(log.try_clone()?).stderr(log);
    // Its exit code says only that some spec failed, which the report says better.
    command.status().context("start ginkgo")?;
    if !report.exists() {
        let log = fs::read_to_string(reports.join("critest.log"))?;
        bail!("critest made no report:\n{}", &log[log.len().saturating_sub(4000)..]);
    }
    Ok(report)
}

/// The flags of critest itself.
fn flags(node: &Node, suite: &Suite) -> Vec<String> {
    let endpoint = format!("unix://{}", node.socket().display());
    let mut flags = vec![format!("-runtime-endpoint={endpoint}"), format!("-image-endpoint={endpoint}")];
    flags.extend(suite.flags(&node.dir().join("nri.sock")));
    flags
}

/// Outcome by the full text of the spec.
fn parse(report: &str) -> Result<BTreeMap<String, Outcome>> {
    let reports: Vec<Report> = serde_json::from_str(report).context("report of critest")?;
    let mut specs = BTreeMap::new();
    let all = reports.into_iter().filter_map(|report| report.spec_reports).flatten();
    for spec in all.filter(|spec| spec.leaf_node_type == "It") {
        let mut name = spec.container_hierarchy_texts.unwrap_or_default();
        name.push(spec.leaf_node_text);
        let name = name.join(" ").trim().to_owned();
        let result = match spec.state.as_str() {
            "passed" => "pass",
            "skipped" | "pending" => "skip",
            _ => "fail",
        };
        let reason = if result == "skip" && spec.run_time == 0 && spec.failure.message.is_empty() {
            UNSELECTED.to_owned()
        } else {
            one_line(&spec.failure.message)
        };
        // A spec that exists twice counts as its worse half.
        let outcome = Outcome { result: result.to_owned(), reason };
        let worse = specs.get(&name).is_none_or(|known: &Outcome| known.result == "pass");
        if worse {
            specs.insert(name, outcome);
        }
    }
    Ok(specs)
}

fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 160;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().take(CHARS_MAX).collect()
}

fn summary(specs: &BTreeMap<String, Outcome>) {
    for (name, outcome) in specs.iter().filter(|(_, outcome)| outcome.result == "fail") {
        say!("failed: {name}: {}", outcome.reason);
    }
    let count = |result: &str| specs.values().filter(|outcome| outcome.result == result).count();
    say!("critest: {} passed, {} failed, {} skipped", count("pass"), count("fail"), count("skip"));
}

/// The table of `CONFORMANCE.md`, by spec.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table(BTreeMap<String, Row>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Row {
    /// `None`: not run.
    results: [Option<String>; Column::COUNT],
    note: String,
}

impl Table {
    fn read(text: &str) -> Result<Self> {
        let mut rows = BTreeMap::new();
        let body = text.lines().skip_while(|line| !line.starts_with("| Spec |")).skip(2);
        for line in body.filter(|line| line.starts_with("| ")) {
            let cells = cells(line);
            let [spec, results @ .., note] = cells.as_slice() else { bail!("CONFORMANCE.md: {line}") };
            let results: Vec<_> = results.iter().map(|cell| (cell != "-").then(|| cell.clone())).collect();
            let results =
                results.try_into().map_err(|_wrong_count| anyhow::anyhow!("CONFORMANCE.md: {line}"))?;
            rows.insert(spec.clone(), Row { results, note: note.clone() });
        }
        Ok(Self(rows))
    }

    fn write(&self) -> String {
        let cell = |text: &str| text.replace('|', "\\|");
        let row = |(spec, row): (&String, &Row)| {
            let results = row.results.iter().map(|result| result.as_deref().unwrap_or("-"));
            format!(
                "| {} | {} | {} |\n",
                cell(spec),
                results.collect::<Vec<_>>().join(" | "),
                cell(&row.note)
            )
        };
        HEADER.to_owned() + &self.0.iter().map(row).collect::<String>()
    }

    /// Writes down how the specs ended. A whole run forgets what the suite has no more.
    fn take(&mut self, suite: &Suite, specs: &BTreeMap<String, Outcome>) {
        let column = suite.column as usize;
        if suite.focus.is_none() && suite.program.is_none() {
            self.0.retain(|spec, row| specs.contains_key(spec) || row.note.starts_with(NEWER));
        }
        for (spec, outcome) in specs.iter().filter(|(_, outcome)| outcome.reason != UNSELECTED) {
            let known = self.0.contains_key(spec);
            let row = self.0.entry(spec.clone()).or_default();
            if !known && suite.program.is_some() {
                row.note = format!("{NEWER} {}", outcome.reason).trim_end().to_owned();
            }
            if row.note.is_empty() && outcome.result != "pass" {
                row.note.clone_from(&outcome.reason);
            }
            row.results[column] = Some(outcome.result.clone());
            if row.results.iter().flatten().all(|result| result == "pass") && !row.note.starts_with(NEWER) {
                row.note.clear();
            }
        }
    }

    /// What the table says that is not so, and what is so that the table does not say.
    fn compare(&self, suite: &Suite, specs: &BTreeMap<String, Outcome>) -> Vec<String> {
        let mut differences = Vec::new();
        for (spec, outcome) in specs.iter().filter(|(_, outcome)| outcome.reason != UNSELECTED) {
            let row = self.0.get(spec);
            let listed = row.and_then(|row| row.results[suite.column as usize].as_deref());
            if listed != Some(outcome.result.as_str()) {
                let (listed, Outcome { result, reason }) = (listed.unwrap_or("-"), outcome);
                differences.push(format!("{spec}: listed as {listed:?}, but {result:?}: {reason}"));
            } else if outcome.result != "pass" && row.is_some_and(|row| row.note.is_empty()) {
                differences.push(format!("{spec}: no note says why"));
            }
        }
        let gone =
            self.0.iter().filter(|(spec, row)| !specs.contains_key(*spec) && !row.note.starts_with(NEWER));
        differences.extend(gone.map(|(spec, _)| format!("{spec}: listed, but there is no such spec")));
        differences
    }
}

/// The cells of a row; `\|` stands for a bar in a cell.
fn cells(line: &str) -> Vec<String> {
    let marked = line.replace("\\|", "\u{1}");
    let inner = marked.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(result: &str, reason: &str) -> Outcome {
        Outcome { result: result.into(), reason: reason.into() }
    }

    fn suite(column: Column) -> Suite {
        Suite { focus: None, column, update: false, seed: 1, websocket: false, nri: false, program: None }
    }

    #[test]
    fn a_table_reads_back_with_bars_in_names() {
        let specs = BTreeMap::from([
            ("a Uid|Username spec".to_owned(), outcome("fail", "no | yes")),
            ("passes".to_owned(), outcome("pass", "")),
        ]);
        let mut table = Table::default();
        table.take(&suite(Column::Runc), &specs);
        let read = Table::read(&table.write()).expect("a table");
        assert_eq!(read, table);
        assert_eq!(read.compare(&suite(Column::Runc), &specs), Vec::<String>::new());
        assert_eq!(read.compare(&suite(Column::V1), &specs).len(), 2, "another column was not run");
    }

    #[test]
    fn every_kind_of_difference_is_found() {
        let listed = BTreeMap::from([
            ("fails".to_owned(), outcome("pass", "")),
            ("passes".to_owned(), outcome("fail", "once")),
            ("gone".to_owned(), outcome("skip", "x")),
            ("mute".to_owned(), outcome("skip", "")),
        ]);
        let mut table = Table::default();
        table.take(&suite(Column::V1), &listed);
        let specs = BTreeMap::from([
            ("fails".to_owned(), outcome("fail", "why")),
            ("passes".to_owned(), outcome("pass", "")),
            ("mute".to_owned(), outcome("skip", "")),
        ]);
        assert_eq!(table.compare(&suite(Column::V1), &specs).len(), 4);
    }

    #[test]
    fn newer_specs_stay_when_the_pinned_suite_runs() {
        let newer = Suite { program: Some("/critest".into()), ..suite(Column::V1) };
        let mut table = Table::default();
        table.take(&newer, &BTreeMap::from([("NRI".to_owned(), outcome("pass", ""))]));
        let specs = BTreeMap::from([("old".to_owned(), outcome("pass", ""))]);
        table.take(&suite(Column::V1), &specs);
        assert_eq!(table.0.len(), 2);
        assert_eq!(table.compare(&suite(Column::V1), &specs), Vec::<String>::new());
    }
}
