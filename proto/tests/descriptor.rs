//! `cri/api.proto` against `cri/v1-fields.tsv`, the table of the CRI that it was written from: every service, call, message,
//! field, enum and value, both ways. What the table lacks fails as what the file lacks does.
//!
//! One thing of the table is left out on purpose: the option `debug_redact` of four fields of `AuthConfig`. The `protoc` 3.21
//! of Debian 12 does not know it and would not compile the file. Our own types never print these fields.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
};

const PACKAGE: &str = "runtime.v1";
const LEFT_OUT: &str = "debug_redact";

/// A line of the table: kind, container, name, number, type, label, oneof, options.
type Row = [String; 8];

fn row(columns: [&str; 8]) -> Row {
    columns.map(str::to_owned)
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cri")
}

/// The lines that say something of the file's elements; `meta` and `unused` say something of the table.
fn table() -> BTreeSet<Row> {
    let text = std::fs::read_to_string(directory().join("v1-fields.tsv")).unwrap();
    let mut rows = BTreeSet::new();
    for line in text.lines().skip(1) {
        let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
        let mut row: Row = columns.try_into().unwrap_or_else(|_| panic!("eight columns: {line:?}"));
        if row[7] == LEFT_OUT {
            row[7] = "-".to_owned();
        }
        if row[0] != "meta" && row[0] != "unused" {
            assert!(rows.insert(row), "twice in the table: {line:?}");
        }
    }
    rows
}

fn file(set: FileDescriptorSet) -> FileDescriptorProto {
    set.file.into_iter().find(|file| file.name() == "api.proto").unwrap()
}

fn compiled() -> FileDescriptorProto {
    file(protox::compile(["api.proto"], [directory()]).unwrap())
}

/// The table's lines as the compiled file has them.
fn rows_of(file: &FileDescriptorProto) -> BTreeSet<Row> {
    let mut rows = BTreeSet::new();
    for service in &file.service {
        let (name, count) = (service.name(), format!("rpcs={}", service.method.len()));
        let full = format!("{PACKAGE}.{name}");
        rows.insert(row(["service", name, "-", "-", &full, "-", "-", &count]));
        for method in &service.method {
            let signature = format!("{} -> {}", local(method.input_type()), local(method.output_type()));
            let streaming = match (method.client_streaming(), method.server_streaming()) {
                (false, false) => "unary",
                (false, true) => "server-streaming",
                (true, _) => "client-streaming",
            };
            let path = format!("/{full}/{}", method.name());
            rows.insert(row(["rpc", name, method.name(), "-", &signature, streaming, "-", &path]));
        }
    }
    file.enum_type.iter().for_each(|kind| enum_rows("", kind, &mut rows));
    file.message_type.iter().for_each(|message| message_rows("", message, &mut rows));
    rows
}

fn message_rows(outer: &str, message: &DescriptorProto, rows: &mut BTreeSet<Row>) {
    let name = format!("{outer}{}", message.name());
    let count = format!("fields={}", message.field.len());
    rows.insert(row(["message", &name, "-", "-", "-", "-", "-", &count]));
    assert!(
        message.oneof_decl.is_empty() && message.extension.is_empty(),
        "{name} has what the table cannot say"
    );
    for field in &message.field {
        let entry = message.nested_type.iter().find(|nested| is_entry_of(nested, field, &name));
        let (kind, label) = match entry {
            Some(entry) => (map_type(entry), "map"),
            None => (field_type(field), label(field)),
        };
        let number = field.number().to_string();
        rows.insert(row(["field", &name, field.name(), &number, &kind, label, "-", &options(field)]));
    }
    let inner = format!("{name}.");
    message.enum_type.iter().for_each(|kind| enum_rows(&inner, kind, rows));
    let is_map =
        |nested: &&DescriptorProto| nested.options.as_ref().is_some_and(|options| options.map_entry());
    message
        .nested_type
        .iter()
        .filter(|nested| !is_map(nested))
        .for_each(|nested| message_rows(&inner, nested, rows));
}

fn enum_rows(outer: &str, kind: &EnumDescriptorProto, rows: &mut BTreeSet<Row>) {
    let name = format!("{outer}{}", kind.name());
    rows.insert(row(["enum", &name, "-", "-", "-", "-", "-", "-"]));
    for value in &kind.value {
        let number = value.number().to_string();
        rows.insert(row(["enumvalue", &name, value.name(), &number, "-", "-", "-", "-"]));
    }
}

fn local(full: &str) -> &str {
    full.strip_prefix(&format!(".{PACKAGE}.")).unwrap_or(full)
}

fn is_entry_of(nested: &DescriptorProto, field: &FieldDescriptorProto, message: &str) -> bool {
    let is_map = nested.options.as_ref().is_some_and(|options| options.map_entry());
    is_map && local(field.type_name()) == format!("{message}.{}", nested.name())
}

fn map_type(entry: &DescriptorProto) -> String {
    format!("map<{},{}>", field_type(&entry.field[0]), field_type(&entry.field[1]))
}

fn field_type(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message => format!("message {}", local(field.type_name())),
        Type::Enum => format!("enum {}", local(field.type_name())),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

fn label(field: &FieldDescriptorProto) -> &'static str {
    match field.label() {
        Label::Optional if field.proto3_optional() => "proto3-optional",
        Label::Optional => "optional",
        Label::Required => "required",
        Label::Repeated => "repeated",
    }
}

/// proto3 packs repeated numbers and enums unless told otherwise.
fn options(field: &FieldDescriptorProto) -> String {
    let options = field.options.clone().unwrap_or_default();
    let is_numeric = !matches!(field.r#type(), Type::String | Type::Bytes | Type::Message | Type::Group);
    let packed = field.label() == Label::Repeated && is_numeric && options.packed.unwrap_or(true);
    match (options.deprecated(), packed) {
        (true, false) => "deprecated".to_owned(),
        (false, true) => "packed".to_owned(),
        (true, true) => "deprecated,packed".to_owned(),
        (false, false) => "-".to_owned(),
    }
}

fn assert_equal(file: &FileDescriptorProto) {
    assert_eq!(file.package(), PACKAGE);
    assert_eq!(file.syntax(), "proto3");
    let (table, compiled) = (table(), rows_of(file));
    let show = |rows: Vec<&Row>| rows.iter().map(|row| format!("\n  {}", row.join(" "))).collect::<String>();
    let missing = show(table.difference(&compiled).collect());
    let extra = show(compiled.difference(&table).collect());
    assert!(missing.is_empty() && extra.is_empty(), "the file lacks:{missing}\nthe table lacks:{extra}");
}

#[test]
fn the_file_is_the_table() {
    assert_equal(&compiled());
}

#[test]
fn the_table_is_whole() {
    let rows = table();
    let count = |kind: &str| rows.iter().filter(|row| row[0] == kind).count();
    let counts = ["service", "rpc", "message", "field", "enum", "enumvalue"].map(count);
    assert_eq!(counts, [2, 43, 175, 478, 11, 95]);
}

#[test]
fn a_difference_of_any_kind_is_found() {
    type Change = fn(&mut FileDescriptorProto);
    let changes: [(&str, Change); 9] = [
        ("a field's number", |file| file.message_type[0].field[0].number = Some(9)),
        ("a field's type", |file| file.message_type[0].field[0].r#type = Some(Type::Bytes.into())),
        ("a field's label", |file| file.message_type[0].field[0].label = Some(Label::Repeated.into())),
        ("a field more", |file| {
            let again =
                FieldDescriptorProto { name: Some("more".into()), ..file.message_type[0].field[0].clone() };
            file.message_type[0].field.push(again);
        }),
        ("a field less", |file| file.message_type[0].field.clear()),
        ("a value's number", |file| file.enum_type[0].value[0].number = Some(9)),
        ("a call that streams", |file| file.service[0].method[0].server_streaming = Some(true)),
        ("a message less", |file| drop(file.message_type.pop())),
        ("an option", |file| {
            let options = prost_types::FieldOptions { deprecated: Some(true), ..Default::default() };
            file.message_type[0].field[0].options = Some(options);
        }),
    ];
    for (what, change) in changes {
        let mut file = compiled();
        change(&mut file);
        assert_ne!(rows_of(&file), table(), "{what}");
    }
}

#[test]
fn every_element_that_needs_it_is_explained() {
    let text = std::fs::read_to_string(directory().join("api.proto")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let is_element =
            ["message ", "enum ", "service ", "rpc "].iter().any(|word| line.trim_start().starts_with(word));
        let explained = at > 0 && lines[at - 1].trim_start().starts_with("//");
        assert!(!is_element || explained, "line {}: {line:?} has no comment", at + 1);
    }
}

/// The `protoc` of a distribution reads the file as our compiler does.
#[test]
fn stock_protoc_agrees() {
    if Command::new("protoc").arg("--version").output().is_err() {
        // Counted as passed by the harness, so it says that it did not run.
        let mut stderr = std::io::stderr();
        std::io::Write::write_all(&mut stderr, b"stock_protoc_agrees: not run, there is no protoc here\n")
            .unwrap();
        return;
    }
    let out = std::env::temp_dir().join(format!("crisp-descriptor-{}.pb", std::process::id()));
    let mut protoc = Command::new("protoc");
    protoc.arg("-I").arg(directory()).arg(format!("--descriptor_set_out={}", out.display())).arg("api.proto");
    let status = protoc.status().unwrap();
    let bytes = std::fs::read(&out);
    let _absent = std::fs::remove_file(&out);
    assert!(status.success());
    assert_equal(&file(FileDescriptorSet::decode(bytes.unwrap().as_slice()).unwrap()));
}
