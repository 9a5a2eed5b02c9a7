//! The node's CNI configuration from a template and the node's pod CIDRs.
//!
//! The language is the part of Go's `text/template` that such templates are written in for other runtimes:
//! ```text
//! {{.PodCIDR}}                                    the first CIDR
//! {{.PodCIDRRanges}} {{.Routes}}                  lists: all CIDRs; a default route for each family that they have
//! {{range .Routes}}…{{.}}…{{else}}…{{end}}        `.` is the element; `else` when there is none
//! {{range $i, $r := .PodCIDRRanges}}…{{$r}}…{{end}}
//! {{if $i}}, {{else}}…{{end}}                     zero, empty text and empty list are false
//! {{index .PodCIDRRanges 1}} {{len .Routes}}      and `$.Routes` inside of a range
//! {{- … -}}                                       takes the white space away on that side
//! {{/* … */}}                                     a comment
//! ```
//! Anything else is an error with its line. Values are CIDRs and numbers, so nothing in them needs quoting.

use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;

use crisp_store::Durability;

use crate::cni::conf::{self, CONFIG_BYTES_MAX, PluginList};
use crate::subnet::Subnet;
use crate::{NetworkError, Result};

/// CIDRs of one node.
const CIDRS_MAX: usize = 16;
/// `range` and `if` within each other.
const DEPTH_MAX: usize = 16;
/// Pieces of text and values that are written: lists in lists could go on for ever.
const STEPS_MAX: usize = 100_000;

/// The address ranges of a node's pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodCidrs(Vec<Subnet>);

impl PodCidrs {
    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In prefix notation.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(Subnet::to_string).collect()
    }

    fn routes(&self) -> Vec<String> {
        let families = [(true, "0.0.0.0/0"), (false, "::/0")];
        let has = |v4: bool| self.0.iter().any(|subnet| subnet.base().is_ipv4() == v4);
        families.into_iter().filter(|(v4, _)| has(*v4)).map(|(_, route)| route.to_owned()).collect()
    }
}

impl FromStr for PodCidrs {
    type Err = String;

    /// Reads `10.1.0.0/24,fd00::/64`, as kubelets say it. Host bits are cleared; an empty text is none.
    fn from_str(text: &str) -> Result<Self, String> {
        let texts: Vec<&str> = text.split(',').map(str::trim).filter(|one| !one.is_empty()).collect();
        if texts.len() > CIDRS_MAX {
            return Err(format!("{} ranges; at most {CIDRS_MAX} are possible", texts.len()));
        }
        texts.into_iter().map(cidr).collect::<Result<_, _>>().map(Self)
    }
}

fn cidr(text: &str) -> Result<Subnet, String> {
    let parsed = || {
        let (address, prefix) = text.split_once('/')?;
        Subnet::new(address.parse::<IpAddr>().ok()?, prefix.parse().ok()?)
    };
    parsed().ok_or_else(|| format!("{text:?} is not an address and a prefix length"))
}

/// Renders the template; the result is whatever the template says, and at most a megabyte.
///
/// # Errors
/// [`NetworkError::Template`] with the line.
pub fn render_template(text: &str, cidrs: &PodCidrs) -> Result<String> {
    let (ranges, routes) = (cidrs.texts(), cidrs.routes());
    let data = Data {
        first: ranges.first().map(String::as_str).unwrap_or_default(),
        ranges: &ranges,
        routes: &routes,
    };
    let tokens = tokenize(text)?;
    let nodes = Parser { tokens: tokens.iter().peekable() }.document()?;
    let mut writer = Writer { data, names: Vec::new(), out: String::new(), steps: 0 };
    writer.write(&nodes, Value::Data)?;
    Ok(writer.out)
}

/// Makes the file what the template gives, unless it is that already.
pub(crate) fn apply(template: &Path, cidrs: &PodCidrs, file: &Path) -> Result<()> {
    let broken = |line, reason| NetworkError::Template { line, reason };
    let unreadable = |reason| broken(0, format!("{}: {reason}", template.display()));
    let rendered = render_template(&conf::read(template).map_err(unreadable)?, cidrs)?;
    let value = serde_json::from_str(&rendered)
        .map_err(|e| broken(e.line(), format!("the result is not JSON: {e}")))?;
    PluginList::from_value(value, |_| Ok(Vec::new()))
        .map_err(|reason| broken(1, format!("the result is no CNI configuration: {reason}")))?;
    if conf::read(file).is_ok_and(|there| there == rendered) {
        return Ok(());
    }
    let dir = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir).map_err(|source| NetworkError::File {
        operation: "make",
        path: dir.to_owned(),
        source,
    })?;
    crisp_store::replace(file, rendered.as_bytes(), Durability::Durable).map_err(NetworkError::Record)
}

/// A piece of the template and its line, from 1.
#[derive(Debug)]
struct Token {
    line: usize,
    piece: Piece,
}

#[derive(Debug)]
enum Piece {
    Text(String),
    /// The words between the braces.
    Action(Vec<String>),
}

fn wrong(line: usize, reason: impl Into<String>) -> NetworkError {
    NetworkError::Template { line, reason: reason.into() }
}

fn tokenize(text: &str) -> Result<Vec<Token>> {
    let (mut tokens, mut rest, mut line, mut trim) = (Vec::new(), text, 1, false);
    loop {
        let (plain, action) = match rest.split_once("{{") {
            None => (rest, None),
            Some((plain, action)) => (plain, Some(action)),
        };
        let trim_end = action.is_some_and(|action| action.starts_with("- "));
        let piece = if trim { plain.trim_start() } else { plain };
        let piece = if trim_end { piece.trim_end() } else { piece };
        tokens.push(Token { line, piece: Piece::Text(piece.to_owned()) });
        line += plain.matches('\n').count();
        let Some(action) = action else { return Ok(tokens) };
        let (inside, after) = action.split_once("}}").ok_or_else(|| wrong(line, "{{ without }}"))?;
        trim = inside.ends_with(" -");
        let inside = inside.strip_prefix("- ").unwrap_or(inside);
        let inside = inside.strip_suffix(" -").unwrap_or(inside).trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            tokens.push(Token { line, piece: Piece::Action(words(inside)) });
        }
        line += action[..action.len() - after.len()].matches('\n').count();
        rest = after;
    }
}

fn words(action: &str) -> Vec<String> {
    let spaced = action.replace(":=", " := ").replace(',', " , ");
    spaced.split_whitespace().map(str::to_owned).collect()
}

/// A part of the template.
#[derive(Debug)]
enum Node<'a> {
    Text(&'a str),
    Value { line: usize, value: Expression<'a> },
    If { line: usize, condition: Expression<'a>, then: Vec<Node<'a>>, otherwise: Vec<Node<'a>> },
    Range { line: usize, names: Vec<&'a str>, list: Expression<'a>, each: Vec<Node<'a>>, none: Vec<Node<'a>> },
}

#[derive(Debug)]
enum Expression<'a> {
    /// `.`, `.Name`, `$name`, `$.Name`
    Operand(&'a str),
    Index(&'a str, usize),
    Length(&'a str),
}

/// What ends a list of parts.
#[derive(Debug, PartialEq, Eq)]
enum Terminator {
    Document,
    Else,
    Closed,
}

struct Parser<'a> {
    tokens: std::iter::Peekable<std::slice::Iter<'a, Token>>,
}

impl<'a> Parser<'a> {
    fn document(mut self) -> Result<Vec<Node<'a>>> {
        match self.nodes(0)? {
            (nodes, Terminator::Document, _) => Ok(nodes),
            (_, _, line) => Err(wrong(line, "else or end without if or range")),
        }
    }

    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node<'a>>, Terminator, usize)> {
        let (mut nodes, mut line) = (Vec::new(), 1);
        while let Some(token) = self.tokens.next() {
            line = token.line;
            let words = match &token.piece {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Piece::Action(words) => words.iter().map(String::as_str).collect::<Vec<_>>(),
            };
            match words.as_slice() {
                ["end"] => return Ok((nodes, Terminator::Closed, line)),
                ["else"] => return Ok((nodes, Terminator::Else, line)),
                ["if", condition @ ..] => {
                    let condition = expression(condition, line)?;
                    let (then, otherwise) = self.branches(depth, line)?;
                    nodes.push(Node::If { line, condition, then, otherwise });
                }
                ["range", head @ ..] => {
                    let (names, list) = range_head(head, line)?;
                    let (each, none) = self.branches(depth, line)?;
                    nodes.push(Node::Range { line, names, list, each, none });
                }
                value => nodes.push(Node::Value { line, value: expression(value, line)? }),
            }
        }
        Ok((nodes, Terminator::Document, line))
    }

    /// The parts up to `end`, and those behind `else`.
    fn branches(&mut self, depth: usize, line: usize) -> Result<(Vec<Node<'a>>, Vec<Node<'a>>)> {
        if depth == DEPTH_MAX {
            return Err(wrong(line, format!("more than {DEPTH_MAX} levels of if and range")));
        }
        let (first, end, at) = self.nodes(depth + 1)?;
        let (second, end) = match end {
            Terminator::Else => self.nodes(depth + 1).map(|(nodes, end, _)| (nodes, end))?,
            Terminator::Closed | Terminator::Document => (Vec::new(), end),
        };
        match end {
            Terminator::Closed => Ok((first, second)),
            Terminator::Else => Err(wrong(at, "a second else")),
            Terminator::Document => Err(wrong(line, "if or range without end")),
        }
    }
}

fn range_head<'a>(head: &[&'a str], line: usize) -> Result<(Vec<&'a str>, Expression<'a>)> {
    match head {
        [index, ",", element, ":=", list @ ..] => {
            Ok((vec![variable(index, line)?, variable(element, line)?], expression(list, line)?))
        }
        [element, ":=", list @ ..] => Ok((vec![variable(element, line)?], expression(list, line)?)),
        list => Ok((Vec::new(), expression(list, line)?)),
    }
}

fn variable(word: &str, line: usize) -> Result<&str> {
    let name = word.strip_prefix('$').unwrap_or_default();
    let sound = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if sound { Ok(word) } else { Err(wrong(line, format!("{word:?} is no name of a variable"))) }
}

fn expression<'a>(words: &[&'a str], line: usize) -> Result<Expression<'a>> {
    let number = |word: &str| word.parse().map_err(|_none| wrong(line, format!("{word:?} is no index")));
    match words {
        [operand] if operand.starts_with(['.', '$']) => Ok(Expression::Operand(operand)),
        ["index", list, n] => Ok(Expression::Index(list, number(n)?)),
        ["len", list] => Ok(Expression::Length(list)),
        other => {
            let known = "a value, index, len, if, else, range and end are";
            Err(wrong(line, format!("{:?} is not supported here: {known}", other.join(" "))))
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Data<'a> {
    first: &'a str,
    ranges: &'a [String],
    routes: &'a [String],
}

#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    Data,
    Text(&'a str),
    List(&'a [String]),
    Number(usize),
}

impl Value<'_> {
    fn is_true(self) -> bool {
        match self {
            Self::Data => true,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.is_empty(),
            Self::Number(number) => number != 0,
        }
    }
}

struct Writer<'a, 't> {
    data: Data<'a>,
    /// Variables, the newest last.
    names: Vec<(&'t str, Value<'a>)>,
    out: String,
    steps: usize,
}

impl<'a, 't> Writer<'a, 't> {
    fn write(&mut self, nodes: &[Node<'t>], dot: Value<'a>) -> Result<()> {
        nodes.iter().try_for_each(|node| self.write_one(node, dot))
    }

    fn write_one(&mut self, node: &Node<'t>, dot: Value<'a>) -> Result<()> {
        match node {
            Node::Text(text) => self.put(text, 0),
            Node::Value { line, value } => match self.value(value, dot, *line)? {
                Value::Text(text) => self.put(text, *line),
                Value::Number(number) => self.put(&number.to_string(), *line),
                Value::List(_) | Value::Data => {
                    Err(wrong(*line, "a list cannot be written: use range or index"))
                }
            },
            Node::If { line, condition, then, otherwise } => {
                let holds = self.value(condition, dot, *line)?.is_true();
                self.write(if holds { then } else { otherwise }, dot)
            }
            Node::Range { line, names, list, each, none } => match self.value(list, dot, *line)? {
                Value::List([]) => self.write(none, dot),
                Value::List(list) => self.each(list, names, each),
                _ => Err(wrong(*line, "range needs a list")),
            },
        }
    }

    fn each(&mut self, list: &'a [String], names: &[&'t str], body: &[Node<'t>]) -> Result<()> {
        let outer = self.names.len();
        for (index, element) in list.iter().enumerate() {
            let element = Value::Text(element);
            match names {
                [name] => self.names.push((name, element)),
                [index_name, name] => {
                    self.names.extend([(*index_name, Value::Number(index)), (*name, element)]);
                }
                _ => {}
            }
            self.write(body, element)?;
            self.names.truncate(outer);
        }
        Ok(())
    }

    fn put(&mut self, text: &str, line: usize) -> Result<()> {
        self.steps += 1;
        if self.steps > STEPS_MAX || (self.out.len() + text.len()) as u64 > CONFIG_BYTES_MAX {
            return Err(wrong(line, "the result is too large"));
        }
        self.out.push_str(text);
        Ok(())
    }

    fn value(&self, expression: &Expression<'t>, dot: Value<'a>, line: usize) -> Result<Value<'a>> {
        let list = |operand: &str| match self.operand(operand, dot, line)? {
            Value::List(list) => Ok(list),
            _ => Err(wrong(line, format!("{operand} is no list"))),
        };
        match expression {
            Expression::Operand(operand) => self.operand(operand, dot, line),
            Expression::Length(operand) => Ok(Value::Number(list(operand)?.len())),
            Expression::Index(operand, n) => {
                let list = list(operand)?;
                let beyond = || wrong(line, format!("{operand} has {} elements, none at {n}", list.len()));
                list.get(*n).map(|text| Value::Text(text)).ok_or_else(beyond)
            }
        }
    }

    fn operand(&self, operand: &str, dot: Value<'a>, line: usize) -> Result<Value<'a>> {
        let unknown =
            || wrong(line, format!("{operand} is unknown: .PodCIDR, .PodCIDRRanges and .Routes are known"));
        let field = |of: Value<'a>, name: &str| match (of, name) {
            (of, "") => Ok(of),
            (Value::Data, "PodCIDR") => Ok(Value::Text(self.data.first)),
            (Value::Data, "PodCIDRRanges") => Ok(Value::List(self.data.ranges)),
            (Value::Data, "Routes") => Ok(Value::List(self.data.routes)),
            _ => Err(unknown()),
        };
        if let Some(name) = operand.strip_prefix('.') {
            return field(dot, name);
        }
        if let Some(name) = operand.strip_prefix("$.") {
            return field(Value::Data, name);
        }
        let named = self.names.iter().rev().find(|(name, _)| *name == operand);
        named.map(|(_, value)| *value).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn render(text: &str, cidrs: &str) -> Result<String> {
        render_template(text, &cidrs.parse().unwrap())
    }

    const DUAL: &str = "10.1.2.0/24,fd00:1::/64";

    #[test]
    fn the_usual_forms_are_rendered() {
        let cases = [
            ("{{.PodCIDR}}", "10.1.2.0/24"),
            (
                r#"[{{range $i, $r := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$r}}"}]{{end}}]"#,
                r#"[[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]]"#,
            ),
            (r#"{{range .Routes}}{"dst": "{{.}}"} {{end}}"#, r#"{"dst": "0.0.0.0/0"} {"dst": "::/0"} "#),
            ("{{range $r:=.Routes}}{{ $r }};{{end}}", "0.0.0.0/0;::/0;"),
            ("{{ index .PodCIDRRanges 1 }} {{len .Routes}}", "fd00:1::/64 2"),
            ("a {{- /* no */ -}} b {{- .PodCIDR -}} \n c", "ab10.1.2.0/24c"),
            ("{{range .Routes}}{{$.PodCIDR}}{{end}}", "10.1.2.0/2410.1.2.0/24"),
            ("{{if .PodCIDR}}yes{{else}}no{{end}}", "yes"),
            ("no braces: { } }}", "no braces: { } }}"),
        ];
        for (template, expected) in cases {
            assert_eq!(render(template, DUAL).unwrap(), expected, "{template}");
        }
        assert_eq!(render("{{range .Routes}}x{{else}}none{{end}}", "").unwrap(), "none");
        assert_eq!(render("{{.PodCIDR}}", "10.1.2.3/24").unwrap(), "10.1.2.0/24");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let cases = [
            ("\n\n{{.Nonsense}}", 3, "unknown"),
            ("{{range .Routes}}", 1, "without end"),
            ("\n{{end}}", 2, "without if"),
            ("{{if .PodCIDR}}a{{else}}b{{else}}c{{end}}", 1, "second else"),
            ("{{", 1, "without }}"),
            ("{{template \"x\"}}", 1, "not supported"),
            ("{{.Routes}}", 1, "cannot be written"),
            ("{{range .PodCIDR}}{{end}}", 1, "needs a list"),
            ("{{index .Routes 7}}", 1, "none at 7"),
            ("{{$x}}", 1, "unknown"),
            ("{{range $i, $ := .Routes}}{{end}}", 1, "no name"),
            ("{{range .Routes}}{{.PodCIDR}}{{end}}", 1, "unknown"),
        ];
        for (template, at, said) in cases {
            let NetworkError::Template { line, reason } = render(template, DUAL).unwrap_err() else {
                panic!()
            };
            assert!(line == at && reason.contains(said), "{template}: {line}: {reason}");
        }
    }

    #[test]
    fn depth_and_size_are_bounded() {
        let deep = "{{range .Routes}}".repeat(DEPTH_MAX + 1);
        assert!(render(&deep, DUAL).unwrap_err().to_string().contains("levels"));
        let nested = format!("{}x{}", "{{range $.Routes}}".repeat(DEPTH_MAX), "{{end}}".repeat(DEPTH_MAX));
        assert!(render(&nested, DUAL).unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn cidrs_are_read_as_kubelets_say_them() {
        let texts = |text: &str| text.parse::<PodCidrs>().map(|cidrs| cidrs.texts());
        assert_eq!(texts(" 10.1.0.0/24, fd00::1/64 ").unwrap(), ["10.1.0.0/24", "fd00::/64"]);
        assert_eq!(texts("").unwrap(), Vec::<String>::new());
        for bad in ["10.1.0.0", "10.1.0.0/33", "x/8", &vec!["10.0.0.0/8"; CIDRS_MAX + 1].join(",")] {
            assert!(texts(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_rendered_or_refused(text in r"(\{\{|\}\}|-| |range|if|else|end|\.|\$|i|,|:=|\n|Routes|PodCIDR|x){0,24}") {
            drop(render(&text, DUAL));
        }
    }
}
