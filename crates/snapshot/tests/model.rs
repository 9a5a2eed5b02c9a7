//! Random layers against a naive model: maps of paths, merged by the rules of the image specification.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/private.rs"]
mod private;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crisp_snapshot::{LayerStore, Limits, SnapshotError};
use private::{commit, full, in_private_mounts, listing};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::*;

#[derive(Debug, Clone)]
enum Op {
    File(String, u32, u8),
    Dir(String, u32),
    Symlink(String),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Given(u32),
    Implied,
    Leaf(String),
    /// A hard link to what was not there when it was read.
    Late(String, usize),
}

#[derive(Default)]
struct Layer {
    nodes: BTreeMap<String, Node>,
    whiteouts: BTreeSet<String>,
    opaques: BTreeSet<String>,
}

type Tree = BTreeMap<String, Node>;

fn above(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |p| {
        if p.is_empty() { None } else { Some(p.rsplit_once('/').map_or("", |x| x.0)) }
    })
    .skip(1)
}

fn is_dir(node: Option<&Node>) -> bool {
    matches!(node, Some(Node::Given(_) | Node::Implied))
}

impl Layer {
    fn new(ops: &[Op]) -> Option<Self> {
        let mut layer = Self::default();
        layer.nodes.insert(String::new(), Node::Implied);
        for (n, op) in ops.iter().enumerate() {
            layer.apply(op, n)?;
        }
        Some(layer)
    }

    /// None: the layer is refused.
    fn apply(&mut self, op: &Op, n: usize) -> Option<()> {
        match op {
            Op::File(path, mode, byte) => self.put(path, Node::Leaf(format!("file {mode:o} {byte}"))),
            Op::Symlink(path) => self.put(path, Node::Leaf("link nowhere".into())),
            Op::Dir(path, mode) => {
                self.enter(path)?;
                if !is_dir(self.nodes.get(path)) {
                    self.cut(path);
                }
                self.nodes.insert(path.clone(), Node::Given(*mode));
                Some(())
            }
            Op::HardLink(path, target) => self.hard_link(path, target, n),
            Op::Whiteout(path) => {
                self.enter(path)?;
                self.whiteouts.insert(path.clone());
                Some(())
            }
            Op::Opaque(path) => {
                self.enter(&format!("{path}/x"))?;
                self.opaques.insert(path.clone());
                Some(())
            }
        }
    }

    fn hard_link(&mut self, path: &str, target: &str, n: usize) -> Option<()> {
        self.enter(path)?;
        if matches!(self.nodes.get(path), Some(Node::Late(..))) {
            self.nodes.remove(path);
        }
        if target.starts_with(&format!("{path}/")) {
            return None;
        }
        // The directory of the target must not be a file of this layer.
        if above(target).any(|up| matches!(self.nodes.get(up), Some(Node::Leaf(_)))) || path == target {
            return None;
        }
        match self.nodes.get(target).cloned() {
            Some(Node::Leaf(content)) => self.put(path, Node::Leaf(content)),
            Some(Node::Late(..)) | None => self.put(path, Node::Late(target.into(), n)),
            _ => None,
        }
    }

    fn put(&mut self, path: &str, node: Node) -> Option<()> {
        self.enter(path)?;
        self.cut(path);
        self.nodes.insert(path.into(), node);
        Some(())
    }

    /// Makes the directories above; none where a file of the same layer is in the way.
    fn enter(&mut self, path: &str) -> Option<()> {
        let ups: Vec<String> = above(path).map(String::from).collect();
        for up in ups.into_iter().rev() {
            match self.nodes.get(&up) {
                Some(Node::Leaf(_)) => return None,
                Some(Node::Given(_) | Node::Implied) => {}
                Some(Node::Late(..)) | None => drop(self.nodes.insert(up, Node::Implied)),
            }
        }
        Some(())
    }

    fn cut(&mut self, path: &str) {
        let below = format!("{path}/");
        self.nodes.retain(|p, _| p != path && !p.starts_with(&below));
    }

    /// Late links find their targets in this layer as it is in the end, or below.
    fn resolve(&mut self, lower: &Tree) -> Option<()> {
        let mut late: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|(path, node)| match node {
                Node::Late(target, n) => Some((*n, path.clone(), target.clone())),
                _ => None,
            })
            .collect();
        late.sort();
        for (_, path, _) in &late {
            self.nodes.remove(path);
        }
        for (_, path, target) in late {
            let content = match (self.nodes.get(&target), lower.get(&target)) {
                (Some(Node::Leaf(content)), _) | (None, Some(Node::Leaf(content))) => content.clone(),
                _ => return None,
            };
            // The target is copied up, unless this layer hides it.
            let hidden = self.whiteouts.contains(&target)
                || above(&target).any(|up| self.whiteouts.contains(up) || self.opaques.contains(up));
            if !self.nodes.contains_key(&target) && !hidden {
                self.enter(&target)?;
                self.nodes.insert(target, Node::Leaf(content.clone()));
            }
            self.enter(&path)?;
            self.nodes.insert(path, Node::Leaf(content));
        }
        Some(())
    }
}

/// None: the layer is refused.
fn merge(lower: &Tree, mut layer: Layer) -> Option<Tree> {
    layer.resolve(lower)?;
    let hides = |path: &str| {
        layer.whiteouts.contains(path)
            || above(path).any(|up| layer.whiteouts.contains(up) || layer.opaques.contains(up))
            || above(path).any(|up| layer.nodes.contains_key(up) && !is_dir(layer.nodes.get(up)))
    };
    let mut tree: Tree =
        lower.iter().filter(|(path, _)| !hides(path)).map(|(p, n)| (p.clone(), n.clone())).collect();
    for (path, node) in &layer.nodes {
        let stays = *node == Node::Implied && is_dir(tree.get(path));
        if !stays {
            let node = if *node == Node::Implied { Node::Given(0o755) } else { node.clone() };
            tree.insert(path.clone(), node);
        }
    }
    // What lies below something that is no directory any more.
    let leaves: Vec<String> =
        tree.iter().filter(|(_, n)| !is_dir(Some(n))).map(|(p, _)| format!("{p}/")).collect();
    tree.retain(|path, _| !leaves.iter().any(|leaf| path.starts_with(leaf)));
    Some(tree)
}

fn expected(layers: &[Vec<Op>]) -> Result<Tree, usize> {
    let mut tree = Tree::new();
    for (n, ops) in layers.iter().enumerate() {
        tree = Layer::new(ops).and_then(|layer| merge(&tree, layer)).ok_or(n)?;
    }
    Ok(tree)
}

fn shown(tree: &Tree) -> BTreeMap<String, String> {
    let what = |node: &Node| match node {
        Node::Given(mode) => format!("dir {mode:o}"),
        Node::Leaf(content) => content.clone(),
        other => format!("{other:?}"),
    };
    tree.iter().map(|(path, node)| (path.clone(), what(node))).collect()
}

fn archive(ops: &[Op]) -> Vec<u8> {
    tar(ops.iter().map(|op| match op {
        Op::File(path, mode, byte) => file(path, byte.to_string()).mode(*mode),
        Op::Dir(path, mode) => dir(path, *mode),
        Op::Symlink(path) => symlink(path, "nowhere"),
        Op::HardLink(path, target) => hard_link(path, target),
        Op::Whiteout(path) => match path.rsplit_once('/') {
            Some((dir, name)) => file(&format!("{dir}/.wh.{name}"), ""),
            None => file(&format!(".wh.{path}"), ""),
        },
        Op::Opaque(path) => file(&format!("{path}/.wh..wh..opq"), ""),
    }))
}

/// Few names, so that they meet; the links have names that no path leads through.
fn op() -> impl Strategy<Value = Op> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    let path = move || proptest::collection::vec(name(), 1..4).prop_map(|parts| parts.join("/"));
    let mode = || prop_oneof![Just(0o644u32), Just(0o4755), Just(0o700)];
    prop_oneof![
        5 => (path(), mode(), any::<u8>()).prop_map(|(p, m, b)| Op::File(p, m, b)),
        3 => (path(), mode()).prop_map(|(p, m)| Op::Dir(p, m)),
        1 => path().prop_map(|p| Op::Symlink(p + "/s")),
        2 => (path(), path()).prop_map(|(p, t)| Op::HardLink(p, t)),
        3 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

fn check(home: &Path, layers: &[Vec<Op>]) -> Result<bool, TestCaseError> {
    let home = home.join(format!("{:x}", getrandom_name()));
    let store = LayerStore::open(&home).map_err(|e| TestCaseError::fail(full(&e)))?;
    let mut chain = Vec::new();
    let mut refused = None;
    for (n, ops) in layers.iter().enumerate() {
        match commit(&store, chain.last(), &archive(ops)) {
            Ok(next) => chain.push(next),
            Err(SnapshotError::Refused { .. }) => {
                refused = Some(n);
                break;
            }
            Err(e) => return Err(TestCaseError::fail(full(&e))),
        }
    }
    match (expected(layers), refused) {
        (Err(expected), Some(found)) => prop_assert_eq!(expected, found),
        (Ok(tree), None) => {
            prop_assert_eq!(shown(&tree), listing(&store, &chain, &home.join("view")));
            prop_assert_eq!(shown(&tree), at_once(&home, layers)?, "committed at once");
        }
        (model, found) => {
            return Err(TestCaseError::fail(format!("model {model:?}, store refused {found:?}")));
        }
    }
    drop(store);
    std::fs::remove_dir_all(&home).map_err(|e| TestCaseError::fail(e.to_string()))?;
    Ok(refused.is_none())
}

/// The same in another store: unpacked first, then committed together.
fn at_once(home: &Path, layers: &[Vec<Op>]) -> Result<BTreeMap<String, String>, TestCaseError> {
    let failed = |e: SnapshotError| TestCaseError::fail(full(&e));
    let store = LayerStore::open(&home.join("other")).map_err(failed)?;
    let unpack = |ops: &Vec<Op>| store.unpack(&archive(ops)[..], &Limits::default());
    let staged: Result<Vec<_>, _> = layers.iter().map(unpack).collect();
    let chain = store.commit_all(staged.map_err(failed)?, None).map_err(failed)?;
    Ok(listing(&store, &chain, &home.join("view")))
}

fn getrandom_name() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

#[test]
fn random_layers_merge_as_the_model_says() {
    in_private_mounts("random_layers_merge_as_the_model_says", |home| {
        let cases = std::env::var("CRISP_TEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400);
        let config = Config { cases, max_shrink_iters: 4000, failure_persistence: None, ..Config::default() };
        let layers = proptest::collection::vec(proptest::collection::vec(op(), 1..7), 1..4);
        let merged = std::cell::Cell::new(0);
        TestRunner::new(config)
            .run(&layers, |layers| {
                let ok = check(home, &layers)?;
                merged.set(merged.get() + u32::from(ok));
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        // Layers that are refused say little about merging.
        assert!(merged.get() * 4 > cases, "only {} of {cases} merged", merged.get());
    });
}
