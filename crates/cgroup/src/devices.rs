//! Device rules: their meaning, the lines of v1, the BPF program of v2. Pure.

use std::fmt;

use crisp_sys::bpf::Insn;

use crate::{CgroupError, Result};

/// Most rules of a cgroup.
pub const DEVICE_RULES_MAX: usize = 400;

/// Which nodes a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Block and character devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What is done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "three independent permission bits, as in rwm")]
pub struct DeviceAccess {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node.
    pub mknod: bool,
}

impl DeviceAccess {
    /// Everything.
    pub const RWM: Self = Self { read: true, write: true, mknod: true };

    /// From the letters of the OCI specification, such as `rwm`; `None` for other letters and for no letter.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let known = !text.is_empty() && text.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm'));
        known.then(|| Self { read: text.contains('r'), write: text.contains('w'), mknod: text.contains('m') })
    }

    /// `BPF_DEVCG_ACC_MKNOD | _READ | _WRITE`.
    fn bits(self) -> i32 {
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }

    fn union(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            write: self.write || other.write,
            mknod: self.mknod || other.mknod,
        }
    }

    fn without(self, other: Self) -> Self {
        Self {
            read: self.read && !other.read,
            write: self.write && !other.write,
            mknod: self.mknod && !other.mknod,
        }
    }

    fn intersects(self, other: Self) -> bool {
        self.bits() & other.bits() != 0
    }

    fn is_empty(self) -> bool {
        self.bits() == 0
    }
}

impl fmt::Display for DeviceAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = [(self.read, "r"), (self.write, "w"), (self.mknod, "m")];
        letters.iter().filter(|(set, _)| *set).try_for_each(|(_, letter)| f.write_str(letter))
    }
}

/// One rule for devices, as in the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind of nodes.
    pub kind: DeviceKind,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Access that is allowed or denied.
    pub access: DeviceAccess,
}

impl DeviceRule {
    /// Speaks of every device and every access.
    fn is_total(&self) -> bool {
        self.kind == DeviceKind::All
            && self.major.is_none()
            && self.minor.is_none()
            && self.access == DeviceAccess::RWM
    }

    fn same_nodes(&self, other: &Self) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
        let kinds = self.kind == DeviceKind::All || other.kind == DeviceKind::All || self.kind == other.kind;
        kinds
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
            && self.access.intersects(other.access)
    }
}

/// `c 1:3 rwm`, as the v1 files and `Display` want it.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            DeviceKind::All => 'a',
            DeviceKind::Char => 'c',
            DeviceKind::Block => 'b',
        };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        write!(f, "{kind} {}:{} {}", number(self.major), number(self.minor), self.access)
    }
}

/// What an ordered list of rules comes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct DeviceTable {
    /// What happens to a device that no exception speaks of.
    pub(crate) allow_others: bool,
    /// The opposite for these; no two speak of the same nodes.
    pub(crate) exceptions: Vec<DeviceRule>,
}

impl DeviceTable {
    /// Folds the rules in order, starting from "nothing is allowed". A rule that would cut a hole into a wider exception is
    /// refused: v1 cannot express it, and half of a rule is worse than none.
    pub(crate) fn new(rules: &[DeviceRule]) -> Result<Self> {
        if rules.len() > DEVICE_RULES_MAX {
            return Err(refuse(&rules.len(), "too many rules"));
        }
        rules.iter().try_fold(Self { allow_others: false, exceptions: Vec::new() }, Self::with)
    }

    fn with(mut self, rule: &DeviceRule) -> Result<Self> {
        match rule {
            rule if rule.is_total() => Ok(Self { allow_others: rule.allow, exceptions: Vec::new() }),
            rule if rule.access.is_empty() => Err(refuse(rule, "the rule names no access")),
            rule if rule.kind == DeviceKind::All => Ok(self.split(*rule)?),
            rule if rule.allow == self.allow_others => {
                self.take_back(rule)?;
                Ok(self)
            }
            rule => {
                self.add(rule);
                Ok(self)
            }
        }
    }

    /// A rule for both kinds that is not total, as one for each kind.
    fn split(self, rule: DeviceRule) -> Result<Self> {
        let kinds = [DeviceKind::Char, DeviceKind::Block];
        kinds.iter().try_fold(self, |table, kind| table.with(&DeviceRule { kind: *kind, ..rule }))
    }

    fn add(&mut self, rule: &DeviceRule) {
        match self.exceptions.iter_mut().find(|other| other.same_nodes(rule)) {
            Some(other) => other.access = other.access.union(rule.access),
            None => self.exceptions.push(*rule),
        }
    }

    fn take_back(&mut self, rule: &DeviceRule) -> Result<()> {
        if self.exceptions.iter().any(|other| other.overlaps(rule) && !covers(rule, other)) {
            return Err(refuse(rule, "the rule takes back a part of a wider one"));
        }
        for other in self.exceptions.iter_mut().filter(|other| covers(rule, other)) {
            other.access = other.access.without(rule.access);
        }
        self.exceptions.retain(|other| !other.access.is_empty());
        Ok(())
    }

    /// Every device, every access: nothing has to be installed.
    pub(crate) fn is_open(&self) -> bool {
        self.allow_others && self.exceptions.is_empty()
    }

    /// v1: values for `devices.deny` (`true`) and `devices.allow` (`false`), in order. A fresh cgroup has its parent's access.
    pub(crate) fn v1_writes(&self) -> Vec<(bool, String)> {
        let reset = (!self.allow_others).then(|| (true, "a".to_owned()));
        let rest = self.exceptions.iter().map(|rule| (self.allow_others, rule.to_string()));
        reset.into_iter().chain(rest).collect()
    }

    /// v2: a program that returns 1 for what is allowed.
    ///
    /// It reads `struct bpf_cgroup_dev_ctx`: access in the high and kind in the low half of the first word, then major, minor.
    /// r1 = context, r2 = kind, r3 = access, r4 = major, r5 = minor.
    pub(crate) fn program(&self) -> Vec<Insn> {
        let mut out = vec![
            load_word(2, 1, 0),
            move_register(3, 2),
            shift_right(3, 16),
            and(2, 0xffff),
            load_word(4, 1, 4),
            load_word(5, 1, 8),
        ];
        for rule in &self.exceptions {
            out.extend(self.block(rule));
        }
        out.extend([move_value(0, i32::from(self.allow_others)), EXIT]);
        out
    }

    /// Leaves with the exception's answer when the request matches, else falls through behind itself.
    fn block(&self, rule: &DeviceRule) -> Vec<Insn> {
        let mut tests = Vec::new();
        match rule.kind {
            DeviceKind::All => {}
            DeviceKind::Block => tests.push(Test::Value(2, 1)),
            DeviceKind::Char => tests.push(Test::Value(2, 2)),
        }
        tests.extend(rule.major.map(|major| Test::Value(4, major.cast_signed())));
        tests.extend(rule.minor.map(|minor| Test::Value(5, minor.cast_signed())));
        tests.push(if self.allow_others {
            Test::AnyOf(rule.access.bits())
        } else {
            Test::NoneBut(rule.access.bits())
        });
        let mut out: Vec<Insn> = vec![move_value(0, i32::from(!self.allow_others)), EXIT];
        // Backwards, since a test jumps over all that follows it.
        for test in tests.iter().rev() {
            let code = test.code(i16::try_from(out.len()).unwrap_or(i16::MAX));
            out.splice(0..0, code);
        }
        out
    }
}

/// Every node and access of `part` is one of `whole`, or the nodes are and the access shrinks cleanly.
fn covers(whole: &DeviceRule, part: &DeviceRule) -> bool {
    let within = |whole: Option<u32>, part: Option<u32>| whole.is_none() || whole == part;
    let kinds = whole.kind == DeviceKind::All || whole.kind == part.kind;
    kinds && within(whole.major, part.major) && within(whole.minor, part.minor)
}

fn refuse(value: &dyn fmt::Display, reason: &'static str) -> CgroupError {
    CgroupError::Resource { field: "devices", value: value.to_string(), reason }
}

/// A condition that a request must meet to go on.
enum Test {
    /// Register equals the 32-bit value.
    Value(u8, i32),
    /// The wanted access has at least one of these bits.
    AnyOf(i32),
    /// The wanted access has no other bits than these.
    NoneBut(i32),
}

impl Test {
    /// Jumps over `rest` instructions when it does not hold.
    fn code(&self, rest: i16) -> Vec<Insn> {
        match *self {
            Self::Value(register, value) => vec![jump_unless_equal(register, value, rest)],
            Self::AnyOf(bits) => vec![move_register(1, 3), and(1, bits), jump_if_zero(1, rest)],
            // The bits outside: 7 is all three.
            Self::NoneBut(bits) => {
                vec![move_register(1, 3), and(1, 7 & !bits), jump_unless_equal(1, 0, rest)]
            }
        }
    }
}

// linux/bpf_common.h, linux/bpf.h: class in the low three bits, operation in the high ones.
const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
    Insn { code, registers, off, imm }
}
/// `BPF_LDX | BPF_MEM | BPF_W`
const fn load_word(dst: u8, src: u8, off: i16) -> Insn {
    insn(0x61, dst, src, off, 0)
}
/// `BPF_ALU | BPF_MOV | BPF_X`: 32 bits, the rest becomes 0.
const fn move_register(dst: u8, src: u8) -> Insn {
    insn(0xbc, dst, src, 0, 0)
}
/// `BPF_ALU | BPF_RSH | BPF_K`
const fn shift_right(dst: u8, by: i32) -> Insn {
    insn(0x74, dst, 0, 0, by)
}
/// `BPF_ALU | BPF_AND | BPF_K`
const fn and(dst: u8, value: i32) -> Insn {
    insn(0x54, dst, 0, 0, value)
}
/// `BPF_ALU64 | BPF_MOV | BPF_K`
const fn move_value(dst: u8, value: i32) -> Insn {
    insn(0xb7, dst, 0, 0, value)
}
/// `BPF_JMP32 | BPF_JNE | BPF_K`: 32 bits, so that a number is not sign-extended.
const fn jump_unless_equal(dst: u8, value: i32, over: i16) -> Insn {
    insn(0x56, dst, 0, over, value)
}
/// `BPF_JMP32 | BPF_JEQ | BPF_K`
const fn jump_if_zero(dst: u8, over: i16) -> Insn {
    insn(0x16, dst, 0, over, 0)
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
