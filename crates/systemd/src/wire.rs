//! The D-Bus wire format, as much as a caller of systemd's manager needs: method calls out, their answers in. Pure.
//!
//! ```text
//! byte    order (l or B), type, flags, version
//! uint32  bytes of the body, serial, bytes of the fields
//! fields  array of (byte code, variant), then zeros up to a multiple of 8
//! body    arguments, each at a multiple of its alignment
//! ```
//!
//! Source: D-Bus specification, "Message Protocol", "Marshaling".

/// Longest message that is taken or sent, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The part before the fields.
pub(crate) const HEAD_BYTES: usize = 16;

const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
const VERSION: u8 = 1;
const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_ERROR_NAME: u8 = 4;
const FIELD_REPLY_SERIAL: u8 = 5;
const FIELD_DESTINATION: u8 = 6;
const FIELD_SIGNATURE: u8 = 8;

/// A setting of a unit: its name in systemd's D-Bus interface, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Such as `MemoryMax`.
    pub name: &'static str,
    /// Of the type that systemd wants for this name.
    pub value: Value,
}

/// A value with its D-Bus type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`.
    Bool(bool),
    /// `t`.
    U64(u64),
    /// `s`.
    Text(String),
    /// `au`.
    Numbers(Vec<u32>),
    /// `ay`.
    Bytes(Vec<u8>),
}

impl Value {
    fn signature(&self) -> &'static str {
        match self {
            Self::Bool(_) => "b",
            Self::U64(_) => "t",
            Self::Text(_) => "s",
            Self::Numbers(_) => "au",
            Self::Bytes(_) => "ay",
        }
    }
}

/// Marshals in this machine's byte order. Everything fits: texts and lists are bounded by who makes them, far below 4 GiB.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }

    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend(value.to_ne_bytes());
    }

    fn count(&mut self, value: usize) {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX));
    }

    /// A `b`; its argument is a value of the format, not a switch.
    #[expect(clippy::fn_params_excessive_bools, reason = "the value itself is marshalled")]
    pub(crate) fn boolean(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    /// `content` with its length in front; the padding before the first element does not count.
    fn array(&mut self, element_alignment: usize, content: impl FnOnce(&mut Self)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(element_alignment);
        let start = self.0.len();
        content(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(value.signature());
        match value {
            Value::Bool(value) => self.boolean(*value),
            Value::U64(value) => {
                self.align(8);
                self.0.extend(value.to_ne_bytes());
            }
            Value::Text(text) => self.text(text),
            Value::Numbers(numbers) => {
                self.array(4, |out| numbers.iter().for_each(|number| out.u32(*number)))
            }
            Value::Bytes(bytes) => self.array(1, |out| out.0.extend(bytes)),
        }
    }

    /// `a(sv)`.
    pub(crate) fn properties(&mut self, properties: &[Property]) {
        self.array(8, |out| {
            for property in properties {
                out.align(8);
                out.text(property.name);
                out.variant(&property.value);
            }
        });
    }

    /// `a(sa(sv))` without an element.
    pub(crate) fn no_units(&mut self) {
        self.array(8, |_| {});
    }

    fn field(&mut self, code: u8, signature: &str, text: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        if signature == "g" { self.signature(text) } else { self.text(text) }
    }
}

/// A method call.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) destination: &'a str,
    pub(crate) path: &'a str,
    pub(crate) interface: &'a str,
    pub(crate) member: &'a str,
    pub(crate) signature: &'a str,
    pub(crate) body: &'a [u8],
}

impl Call<'_> {
    pub(crate) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut out = Writer(vec![ORDER, METHOD_CALL, 0, VERSION]);
        out.count(self.body.len());
        out.u32(serial);
        out.array(8, |out| {
            out.field(FIELD_PATH, "o", self.path);
            out.field(FIELD_INTERFACE, "s", self.interface);
            out.field(FIELD_MEMBER, "s", self.member);
            out.field(FIELD_DESTINATION, "s", self.destination);
            if !self.signature.is_empty() {
                out.field(FIELD_SIGNATURE, "g", self.signature);
            }
        });
        out.align(8);
        out.0.extend(self.body);
        out.finish()
    }
}

/// What a message that came in says, as far as a caller cares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// The call with this serial succeeded.
    Return(u32),
    /// It did not.
    Error { serial: u32, name: String, message: String },
    /// A signal, or a call to us.
    Other,
}

/// The sizes that the fixed part announces.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head {
    kind: u8,
    fields: usize,
    body: usize,
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, &'static str> {
        let [order, kind, _flags, version, b0, b1, b2, b3, _, _, _, _, f0, f1, f2, f3] = bytes;
        if order != ORDER {
            return Err("it has another byte order than this machine");
        }
        if version != VERSION {
            return Err("it has an unknown protocol version");
        }
        let size = |bytes| usize::try_from(u32::from_ne_bytes(bytes)).unwrap_or(usize::MAX);
        let head = Self { kind, fields: size([f0, f1, f2, f3]), body: size([b0, b1, b2, b3]) };
        if head.fields > MESSAGE_BYTES_MAX || head.body > MESSAGE_BYTES_MAX {
            return Err("it is too long");
        }
        Ok(head)
    }

    /// Bytes that follow the fixed part.
    pub(crate) fn rest(&self) -> usize {
        self.fields.next_multiple_of(8) + self.body
    }

    /// `rest`: [`Head::rest`] bytes.
    pub(crate) fn incoming(&self, rest: &[u8]) -> Result<Incoming, &'static str> {
        if !matches!(self.kind, METHOD_RETURN | ERROR) {
            return Ok(Incoming::Other);
        }
        let body_at = self.fields.next_multiple_of(8);
        let (fields, body) =
            rest.get(..self.fields).zip(rest.get(body_at..)).ok_or("it ends in the middle")?;
        let fields = Fields::parse(fields)?;
        let serial = fields.reply_serial.ok_or("an answer that does not say to what")?;
        if self.kind == METHOD_RETURN {
            return Ok(Incoming::Return(serial));
        }
        let name = fields.error_name.ok_or("an error without a name")?;
        let message =
            if fields.signature.starts_with('s') { Reader::new(body).text()? } else { String::new() };
        Ok(Incoming::Error { serial, name, message })
    }
}

#[derive(Debug, Default)]
struct Fields {
    reply_serial: Option<u32>,
    error_name: Option<String>,
    signature: String,
}

impl Fields {
    fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let (mut found, mut reader) = (Self::default(), Reader::new(bytes));
        while reader.at < bytes.len() {
            reader.align(8);
            let code = reader.byte()?;
            match reader.signature()?.as_str() {
                "u" => {
                    let number = reader.u32()?;
                    if code == FIELD_REPLY_SERIAL {
                        found.reply_serial = Some(number);
                    }
                }
                "s" | "o" => {
                    let text = reader.text()?;
                    if code == FIELD_ERROR_NAME {
                        found.error_name = Some(text);
                    }
                }
                "g" => {
                    let text = reader.signature()?;
                    if code == FIELD_SIGNATURE {
                        found.signature = text;
                    }
                }
                _ => return Err("a header field of an unknown type"),
            }
        }
        Ok(found)
    }
}

/// Reads what [`Writer`] writes; refuses to leave its bytes.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let end = self.at.checked_add(count).ok_or("it ends in the middle")?;
        let taken = self.bytes.get(self.at..end).ok_or("it ends in the middle")?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u32(&mut self) -> Result<u32, &'static str> {
        self.align(4);
        let bytes = self.take(4)?;
        Ok(bytes.try_into().map_or(0, u32::from_ne_bytes))
    }

    fn text(&mut self) -> Result<String, &'static str> {
        let length = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        self.string(length)
    }

    fn signature(&mut self) -> Result<String, &'static str> {
        let length = usize::from(self.byte()?);
        self.string(length)
    }

    fn string(&mut self, length: usize) -> Result<String, &'static str> {
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.take(1)?;
        Ok(text)
    }
}

/// An answer, for the tests' server.
#[cfg(test)]
pub(crate) fn answer(serial: u32, error: Option<(&str, &str)>) -> Vec<u8> {
    let mut body = Writer::default();
    if let Some((_, message)) = error {
        body.text(message);
    }
    let kind = if error.is_some() { ERROR } else { METHOD_RETURN };
    let mut out = Writer(vec![ORDER, kind, 1, VERSION]);
    out.count(body.0.len());
    out.u32(77);
    out.array(8, |out| {
        out.align(8);
        out.0.push(FIELD_REPLY_SERIAL);
        out.signature("u");
        out.u32(serial);
        if let Some((name, _)) = error {
            out.field(FIELD_ERROR_NAME, "s", name);
            out.field(FIELD_SIGNATURE, "g", "s");
        }
    });
    out.align(8);
    out.0.extend(body.0);
    out.finish()
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
