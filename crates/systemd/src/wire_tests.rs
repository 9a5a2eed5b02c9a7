use proptest::prelude::*;
use zvariant::serialized::Context;
use zvariant::{Endian, Value as Their};

use super::*;

fn native() -> Context {
    let order = if cfg!(target_endian = "little") { Endian::Little } else { Endian::Big };
    Context::new_dbus(order, 0)
}

fn theirs(value: &Value) -> Their<'static> {
    match value.clone() {
        Value::Bool(value) => value.into(),
        Value::U64(value) => value.into(),
        Value::Text(text) => text.into(),
        Value::Numbers(numbers) => numbers.into(),
        Value::Bytes(bytes) => bytes.into(),
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        any::<u64>().prop_map(Value::U64),
        "[a-zä ]{0,20}".prop_map(Value::Text),
        proptest::collection::vec(any::<u32>(), 0..9).prop_map(Value::Numbers),
        proptest::collection::vec(any::<u8>(), 0..9).prop_map(Value::Bytes),
    ]
}

proptest! {
    /// The arguments of StartTransientUnit, against another implementation of the format.
    #[test]
    fn arguments_are_encoded_as_others_do(unit in "[a-z.-]{0,30}", values in proptest::collection::vec(value(), 0..6)) {
        let properties: Vec<_> = values.into_iter().map(|value| Property { name: "MemoryMax", value }).collect();
        let mut out = Writer::default();
        out.text(&unit);
        out.text("fail");
        out.properties(&properties);
        out.no_units();
        let theirs: Vec<_> = properties.iter().map(|property| (property.name, theirs(&property.value))).collect();
        let units: Vec<(&str, Vec<(&str, Their<'_>)>)> = Vec::new();
        let want = zvariant::to_bytes(native(), &(unit.as_str(), "fail", theirs, units)).unwrap();
        prop_assert_eq!(out.finish(), want.bytes());
    }

    #[test]
    fn no_bytes_make_the_reader_fail_otherwise_than_with_an_error(
        head in any::<[u8; HEAD_BYTES]>(), kind in 0u8..5, rest in proptest::collection::vec(any::<u8>(), 0..200)
    ) {
        let _any_answer = Head::parse(head);
        for fields in [0, rest.len() / 2, rest.len(), rest.len() + 9] {
            let head = Head { kind, fields, body: rest.len().saturating_sub(fields) };
            let _any_answer = head.incoming(&rest);
        }
    }
}

#[test]
fn a_call_has_these_bytes() {
    let mut body = Writer::default();
    body.text("a.scope");
    let call = Call {
        destination: "d.d",
        path: "/p",
        interface: "i.i",
        member: "M",
        signature: "s",
        body: &body.finish(),
    };
    let mut want = Vec::new();
    if cfg!(target_endian = "big") {
        return;
    }
    want.extend(b"l\x01\x00\x01\x0c\x00\x00\x00\x07\x00\x00\x00\x4f\x00\x00\x00");
    want.extend(b"\x01\x01o\x00\x02\x00\x00\x00/p\x00\x00\x00\x00\x00\x00");
    want.extend(b"\x02\x01s\x00\x03\x00\x00\x00i.i\x00\x00\x00\x00\x00");
    want.extend(b"\x03\x01s\x00\x01\x00\x00\x00M\x00\x00\x00\x00\x00\x00\x00");
    want.extend(b"\x06\x01s\x00\x03\x00\x00\x00d.d\x00\x00\x00\x00\x00");
    want.extend(b"\x08\x01g\x00\x01s\x00\x00");
    want.extend(b"\x07\x00\x00\x00a.scope\x00");
    let got = call.encode(7);
    // 79 or less bytes of fields: the last field's padding is not counted.
    want[12] = got[12];
    assert_eq!(got, want);
    assert_eq!(got[12], 71);
}

fn read(bytes: &[u8]) -> Result<Incoming, &'static str> {
    let head = Head::parse(bytes[..HEAD_BYTES].try_into().unwrap())?;
    assert_eq!(HEAD_BYTES + head.rest(), bytes.len());
    head.incoming(&bytes[HEAD_BYTES..])
}

#[test]
fn answers_are_understood() {
    assert_eq!(read(&answer(9, None)), Ok(Incoming::Return(9)));
    let error = Incoming::Error { serial: 4, name: "org.x.Bad".into(), message: "no".into() };
    assert_eq!(read(&answer(4, Some(("org.x.Bad", "no")))), Ok(error));
    let mut signal = answer(1, None);
    signal[1] = 4;
    assert_eq!(read(&signal), Ok(Incoming::Other));
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let whole = answer(1, Some(("a.b", "c")));
    let head = |at: usize, byte: u8| {
        let mut bytes: [u8; HEAD_BYTES] = whole[..HEAD_BYTES].try_into().unwrap();
        bytes[at] = byte;
        Head::parse(bytes)
    };
    assert!(head(0, b'x').is_err(), "byte order");
    assert!(head(3, 2).is_err(), "version");
    assert!(head(7, 1).is_err(), "16 MiB of body");
    assert!(head(15, 1).is_err(), "16 MiB of fields");
    let fine = head(1, ERROR).unwrap();
    assert_eq!(fine.incoming(&whole[HEAD_BYTES..HEAD_BYTES + 8]), Err("it ends in the middle"));
}
