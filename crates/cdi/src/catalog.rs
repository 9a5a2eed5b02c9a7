//! What the directories describe, read again when something in them changed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::Spec;

use crate::edits;
use crate::error::CdiError;
use crate::file::{File, Format};
use crate::name::DeviceName;

/// Files of one directory.
const FILES_MAX: usize = 1024;
/// Bytes of one file.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Devices of one request.
const DEVICES_MAX: usize = 1024;

/// A file that is left out, or two that clash.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

/// The devices that vendors describe.
#[derive(Debug)]
pub struct Registry {
    dirs: Vec<PathBuf>,
    last: Mutex<Last>,
}

/// What was read last, and what the directories looked like then.
#[derive(Debug, Default)]
struct Last {
    prints: Option<Vec<Print>>,
    catalog: Arc<Catalog>,
}

/// What tells one state of a file from another one: a file is replaced or written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Print {
    path: PathBuf,
    dir: usize,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

/// What was found.
#[derive(Debug, Default)]
struct Catalog {
    files: Vec<(PathBuf, File)>,
    devices: BTreeMap<DeviceName, Found>,
    problems: Vec<Problem>,
}

/// Where a device is described: index of the file, and of the device in it.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    device: usize,
}

#[derive(Debug, Clone, Copy)]
enum Found {
    Once { dir: usize, place: Place },
    Twice { dir: usize, first: usize, second: usize },
}

impl Registry {
    /// Over these directories, in rising precedence; they need not exist. Reads nothing yet.
    #[must_use]
    pub fn new(dirs: Vec<PathBuf>) -> Self {
        Self { dirs, last: Mutex::default() }
    }

    /// Applies the devices of these names to `spec`, in order, each once: first the edits of its file, if no device of it came before,
    /// then its own. Blocks: changed files are read.
    ///
    /// # Errors
    /// [`CdiError`], the first one; `spec` has not changed then.
    pub fn inject(&self, names: &[String], spec: &mut Spec) -> Result<(), CdiError> {
        if names.is_empty() {
            return Ok(());
        }
        if names.len() > DEVICES_MAX {
            return Err(CdiError::TooMany(DEVICES_MAX));
        }
        let catalog = self.refreshed();
        let (mut edited, mut seen, mut files) = (spec.clone(), BTreeSet::new(), BTreeSet::new());
        for text in names {
            let name: DeviceName = text.parse()?;
            if !seen.insert(name.clone()) {
                continue;
            }
            let place = self.find(&catalog, &name)?;
            let (path, file) = &catalog.files[place.file];
            let failed = |problem| CdiError::Edit { name: name.to_string(), file: path.clone(), problem };
            if files.insert(place.file) {
                edits::apply(&mut edited, &file.container_edits).map_err(failed)?;
            }
            edits::apply(&mut edited, &file.devices[place.device].container_edits).map_err(failed)?;
        }
        *spec = edited;
        Ok(())
    }

    /// Files that are left out, and clashes. Blocks as [`Registry::inject`] does.
    pub fn problems(&self) -> Vec<Problem> {
        self.refreshed().problems.clone()
    }

    /// Names of the devices that can be used. Blocks as [`Registry::inject`] does.
    pub fn devices(&self) -> Vec<String> {
        let catalog = self.refreshed();
        let usable = catalog.devices.iter().filter(|(_, found)| matches!(found, Found::Once { .. }));
        usable.map(|(name, _)| name.to_string()).collect()
    }

    fn find(&self, catalog: &Catalog, name: &DeviceName) -> Result<Place, CdiError> {
        match catalog.devices.get(name) {
            Some(Found::Once { place, .. }) => Ok(*place),
            Some(Found::Twice { first, second, .. }) => Err(CdiError::Conflict {
                name: name.to_string(),
                first: catalog.files[*first].0.clone(),
                second: catalog.files[*second].0.clone(),
            }),
            None => Err(CdiError::Unknown { name: name.to_string(), dirs: self.dirs.clone() }),
        }
    }

    fn refreshed(&self) -> Arc<Catalog> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (prints, mut problems) = self.look();
        if last.prints.as_ref() != Some(&prints) {
            let mut catalog = Catalog::default();
            for print in &prints {
                catalog.add(print);
            }
            catalog.problems.append(&mut problems);
            catalog.clashes();
            catalog.problems.sort();
            for problem in catalog.problems.iter().filter(|problem| !last.catalog.problems.contains(problem))
            {
                tracing::warn!(path = %problem.path.display(), problem = problem.problem, "CDI file left out");
            }
            *last = Last { prints: Some(prints), catalog: Arc::new(catalog) };
        }
        Arc::clone(&last.catalog)
    }

    /// The files there are, in order of precedence and then of name.
    fn look(&self) -> (Vec<Print>, Vec<Problem>) {
        let (mut prints, mut problems) = (Vec::new(), Vec::new());
        for (number, dir) in self.dirs.iter().enumerate() {
            match look_into(dir, number) {
                Ok(mut found) => {
                    found.sort_by(|a, b| a.path.cmp(&b.path));
                    prints.extend(found);
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => problems.push(Problem { path: dir.clone(), problem: error.to_string() }),
            }
        }
        (prints, problems)
    }
}

fn look_into(dir: &Path, number: usize) -> io::Result<Vec<Print>> {
    let mut prints = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        // A file may vanish meanwhile, and a link may lead nowhere.
        let Ok(metadata) = std::fs::metadata(&path) else { continue };
        if format(&path).is_none() || !metadata.is_file() {
            continue;
        }
        if prints.len() == FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} files")));
        }
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        prints.push(Print { path, dir: number, inode: metadata.ino(), bytes: metadata.len(), changed });
    }
    Ok(prints)
}

fn format(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "json" => Some(Format::Json),
        "yaml" => Some(Format::Yaml),
        _ => None,
    }
}

fn read(path: &Path) -> Result<File, String> {
    let format = format(path).ok_or("neither .json nor .yaml")?;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("more than {FILE_BYTES_MAX} bytes"));
    }
    File::parse(&text, format)
}

impl Catalog {
    fn add(&mut self, print: &Print) {
        match read(&print.path) {
            Ok(file) => {
                let at = self.files.len();
                for (device, description) in file.devices.iter().enumerate() {
                    let name = DeviceName::new(&file.kind, &description.name);
                    let place = Place { file: at, device };
                    let found = match self.devices.get(&name) {
                        Some(Found::Once { dir, place: first }) if *dir == print.dir => {
                            Found::Twice { dir: *dir, first: first.file, second: at }
                        }
                        Some(twice @ Found::Twice { dir, .. }) if *dir == print.dir => *twice,
                        // None yet, or only in a directory of lower precedence.
                        Some(_) | None => Found::Once { dir: print.dir, place },
                    };
                    self.devices.insert(name, found);
                }
                self.files.push((print.path.clone(), file));
            }
            Err(problem) => self.problems.push(Problem { path: print.path.clone(), problem }),
        }
    }

    fn clashes(&mut self) {
        for (name, found) in &self.devices {
            if let Found::Twice { first, second, .. } = found {
                let (first, second) = (self.files[*first].0.display(), &self.files[*second].0);
                let problem = format!("{name} is described by {first} as well");
                self.problems.push(Problem { path: second.clone(), problem });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(kind: &str, device: &str, value: &str) -> String {
        format!(
            r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "containerEdits": {{"env": ["FILE=1"]}},
                "devices": [{{"name": "{device}", "containerEdits": {{"env": ["{device}={value}"]}}}}]}}"#
        )
    }

    struct Bench {
        low: tempfile::TempDir,
        high: tempfile::TempDir,
        registry: Registry,
    }

    fn bench() -> Bench {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let dirs = vec![low.path().to_owned(), "/nowhere".into(), high.path().to_owned()];
        Bench { registry: Registry::new(dirs), low, high }
    }

    fn env(registry: &Registry, names: &[&str]) -> Result<Vec<String>, CdiError> {
        let mut spec = Spec::default();
        spec.process_mut().as_mut().unwrap().set_env(None);
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        registry.inject(&names, &mut spec)?;
        Ok(spec.process().clone().unwrap().env().clone().unwrap_or_default())
    }

    #[test]
    fn edits_of_the_file_come_once_and_first() {
        let Bench { low, registry, .. } = bench();
        let two = file("v/c", "a", "1").replace("\"devices\": [", "\"devices\": [{\"name\": \"b\"},");
        std::fs::write(low.path().join("x.json"), two).unwrap();
        assert_eq!(env(&registry, &["v/c=b", "v/c=a", "v/c=a"]).unwrap(), ["FILE=1", "a=1"]);
        assert_eq!(registry.devices(), ["v/c=a", "v/c=b"]);
    }

    #[test]
    fn higher_precedence_hides_and_equal_precedence_clashes() {
        let Bench { low, high, registry } = bench();
        std::fs::write(low.path().join("x.json"), file("v/c", "a", "low")).unwrap();
        std::fs::write(low.path().join("y.json"), file("v/c", "a", "other")).unwrap();
        assert!(matches!(env(&registry, &["v/c=a"]), Err(CdiError::Conflict { .. })));
        assert!(registry.problems()[0].problem.contains("v/c=a is described by"));
        std::fs::write(high.path().join("z.json"), file("v/c", "a", "high")).unwrap();
        assert_eq!(env(&registry, &["v/c=a"]).unwrap(), ["FILE=1", "a=high"]);
        std::fs::write(high.path().join("zz.json"), file("v/c", "a", "high")).unwrap();
        assert!(matches!(env(&registry, &["v/c=a"]), Err(CdiError::Conflict { .. })));
    }

    #[test]
    fn changes_are_seen_and_broken_files_are_named() {
        let Bench { high, registry, .. } = bench();
        let path = high.path().join("x.json");
        let error = env(&registry, &["v/c=a"]).unwrap_err();
        assert!(error.to_string().starts_with("CDI device v/c=a is not described by any file in "));
        std::fs::write(&path, file("v/c", "a", "1")).unwrap();
        assert_eq!(env(&registry, &["v/c=a"]).unwrap()[1], "a=1");
        std::fs::write(&path, file("v/c", "a", "22")).unwrap();
        assert_eq!(env(&registry, &["v/c=a"]).unwrap()[1], "a=22");
        std::fs::write(high.path().join("broken.yaml"), "kind: [").unwrap();
        assert_eq!(env(&registry, &["v/c=a"]).unwrap()[1], "a=22");
        assert_eq!(registry.problems()[0].path, high.path().join("broken.yaml"));
        std::fs::remove_file(&path).unwrap();
        assert!(env(&registry, &["v/c=a"]).is_err());
    }

    #[test]
    fn nothing_is_half_applied() {
        let Bench { low, registry, .. } = bench();
        std::fs::write(low.path().join("x.json"), file("v/c", "a", "1")).unwrap();
        let mut spec = Spec::default();
        let before = spec.clone();
        let names = ["v/c=a".to_owned(), "v/c=missing".to_owned()];
        assert!(registry.inject(&names, &mut spec).is_err());
        assert_eq!(spec, before);
    }
}
