//! critest, and the comparison of its outcome with `CONFORMANCE.md`: every spec that does not pass is listed there with
//! its result and the reason, and nothing else is.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::node::{Node, Options};
use crate::paths;
use crate::registry::Registry;
use crate::say;
use crate::suite::REGISTRY_PORT;

/// Specs that run at once: most of them wait most of the time.
const PARALLEL: u8 = 4;
const HEADER: &str = "# Conformance

What [critest](https://github.com/kubernetes-sigs/cri-tools) says of this runtime: every spec that does not pass, with the
result and the reason. All others pass. `crictl-tests critest` runs the suite and compares: a spec that fails and is not
listed here fails the run, and so does one that is listed and passes. `crictl-tests critest --update` writes the table.

The run: cri-tools as pinned in `tools/go.mod`, images built from Debian packages (`src/images/catalog.rs`), a host with
cgroup v1 and without AppArmor and SELinux.

| Spec | Result | Reason |
|---|---|---|
";

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

/// What is done with `CONFORMANCE.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// It must say what is so.
    Compare,
    /// It is written anew.
    Update,
}

/// Runs critest; whether reality and table agree. With `focus` only matching specs run and nothing is compared.
///
/// # Errors
/// When the node does not start or critest gives no report.
pub fn run(focus: Option<&str>, table: Table) -> Result<bool> {
    let mut registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    let mut node = Node::start("critest", 1, &registry, &Options::default())?;
    let report = critest(&node, focus);
    let left = node.finish();
    registry.stop()?;
    let specs = parse(&fs::read_to_string(report?)?)?;
    summary(&specs);
    if let Err(error) = left {
        node.keep_log();
        say!("after critest: {error:#}");
        return Ok(false);
    }
    if focus.is_some() {
        return Ok(specs.values().all(|outcome| outcome.result != "failed"));
    }
    let path = paths::crate_dir().join("CONFORMANCE.md");
    let listed = read_table(&fs::read_to_string(&path).unwrap_or_default())?;
    if table == Table::Update {
        fs::write(&path, write_table(&specs, &listed))?;
        return Ok(true);
    }
    let differences = compare(&specs, &listed);
    for line in &differences {
        say!("CONFORMANCE.md: {line}");
    }
    say!("{} differences from CONFORMANCE.md", differences.len());
    Ok(differences.is_empty())
}

fn critest(node: &Node, focus: Option<&str>) -> Result<PathBuf> {
    let reports = paths::reports();
    fs::create_dir_all(&reports)?;
    let report = reports.join("critest.json");
    drop(fs::remove_file(&report));
    let program = node.dir().join("critest.test");
    std::os::unix::fs::symlink(paths::tools().join("critest"), &program)?;
    let empty = node.dir().join("crictl.yaml");
    fs::write(&empty, "")?;
    let endpoint = format!("unix://{}", node.socket().display());
    let log = fs::File::create(reports.join("critest.log"))?;
    let mut command = Command::new(paths::tools().join("ginkgo"));
    command.args([
        "--nodes",
        &PARALLEL.to_string(),
        "--seed",
        "1",
        "--timeout",
        "20m",
        "--no-color",
        "--skip",
        "benchmark",
    ]);
    command.args(["--json-report", "critest.json"]).arg("--output-dir").arg(&reports);
    if let Some(focus) = focus {
        command.args(["--focus", focus]);
    }
    command.arg(&program).arg("--").args(["-runtime-endpoint", &endpoint, "-image-endpoint", &endpoint]);
    command.arg("-config").arg(&empty).stdout(log.try_clone()?).stderr(log);
    // Its exit code says only that some spec failed, which the report says better.
    command.status().context("start ginkgo")?;
    if !report.exists() {
        let log = fs::read_to_string(reports.join("critest.log"))?;
        bail!("critest made no report:\n{}", &log[log.len().saturating_sub(4000)..]);
    }
    Ok(report)
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
            "passed" => "passed",
            "skipped" | "pending" => "skipped",
            _ => "failed",
        };
        let reason = if result == "skipped" && spec.run_time == 0 && spec.failure.message.is_empty() {
            "not selected".to_owned()
        } else {
            one_line(&spec.failure.message)
        };
        // A spec that exists twice counts as its worse half.
        let outcome = Outcome { result: result.to_owned(), reason };
        let worse = specs.get(&name).is_none_or(|known: &Outcome| known.result == "passed");
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
    for (name, outcome) in specs.iter().filter(|(_, outcome)| outcome.result == "failed") {
        say!("failed: {name}: {}", outcome.reason);
    }
    let count = |result: &str| specs.values().filter(|outcome| outcome.result == result).count();
    say!("critest: {} passed, {} failed, {} skipped", count("passed"), count("failed"), count("skipped"));
}

/// The rows of the table, by spec.
fn read_table(text: &str) -> Result<BTreeMap<String, Outcome>> {
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells = cells(line);
        let [spec, result, reason] = cells.as_slice() else {
            bail!("CONFORMANCE.md: not three cells: {line}")
        };
        if spec != "Spec" {
            rows.insert(spec.clone(), Outcome { result: result.clone(), reason: reason.clone() });
        }
    }
    Ok(rows)
}

/// The cells of a row; `\|` stands for a bar in a cell.
fn cells(line: &str) -> Vec<String> {
    let marked = line.replace("\\|", "\u{1}");
    let inner = marked.trim().trim_start_matches('|').trim_end_matches('|');
    inner.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect()
}

fn write_table(specs: &BTreeMap<String, Outcome>, listed: &BTreeMap<String, Outcome>) -> String {
    let mut text = HEADER.to_owned();
    for (name, outcome) in specs.iter().filter(|(_, outcome)| outcome.result != "passed") {
        let kept = listed.get(name).filter(|row| row.result == outcome.result);
        let reason = kept.map_or(&outcome.reason, |row| &row.reason);
        let cell = |text: &str| text.replace('|', "\\|");
        text.push_str(&format!("| {} | {} | {} |\n", cell(name), outcome.result, cell(reason)));
    }
    text
}

/// What the table says that is not so, and what is so that the table does not say.
fn compare(specs: &BTreeMap<String, Outcome>, listed: &BTreeMap<String, Outcome>) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, outcome) in specs {
        match listed.get(name) {
            None if outcome.result != "passed" => {
                differences.push(format!("{name}: {} and not listed: {}", outcome.result, outcome.reason));
            }
            Some(row) if row.result != outcome.result => {
                differences.push(format!("{name}: listed as {}, but it {}", row.result, outcome.result));
            }
            Some(row) if row.reason.is_empty() => differences.push(format!("{name}: no reason is given")),
            _ => {}
        }
    }
    let gone = listed.keys().filter(|name| !specs.contains_key(*name));
    differences.extend(gone.map(|name| format!("{name}: listed, but there is no such spec")));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(result: &str, reason: &str) -> Outcome {
        Outcome { result: result.into(), reason: reason.into() }
    }

    #[test]
    fn a_table_reads_back_with_bars_in_names() {
        let specs = BTreeMap::from([
            ("a Uid|Username spec".to_owned(), outcome("failed", "no | yes")),
            ("passes".to_owned(), outcome("passed", "")),
        ]);
        let rows = read_table(&write_table(&specs, &BTreeMap::new())).expect("a table");
        assert_eq!(rows, BTreeMap::from([("a Uid|Username spec".to_owned(), outcome("failed", "no | yes"))]));
        assert_eq!(compare(&specs, &rows), Vec::<String>::new());
    }

    #[test]
    fn both_kinds_of_difference_are_found() {
        let specs = BTreeMap::from([
            ("fails".to_owned(), outcome("failed", "why")),
            ("passes".to_owned(), outcome("passed", "")),
        ]);
        let listed = BTreeMap::from([
            ("passes".to_owned(), outcome("failed", "once")),
            ("gone".to_owned(), outcome("skipped", "x")),
        ]);
        assert_eq!(compare(&specs, &listed).len(), 3);
    }
}
