use super::*;

fn rule(text: &str) -> DeviceRule {
    let words: Vec<&str> = text.split([' ', ':']).collect();
    let number = |word: &str| (word != "*").then(|| word.parse().unwrap());
    let kind = match words[1] {
        "a" => DeviceKind::All,
        "c" => DeviceKind::Char,
        _ => DeviceKind::Block,
    };
    let access = DeviceAccess::parse(words[4]).unwrap();
    DeviceRule { allow: words[0] == "+", kind, major: number(words[2]), minor: number(words[3]), access }
}

fn table(rules: &[&str]) -> Result<DeviceTable> {
    DeviceTable::new(&rules.iter().map(|text| rule(text)).collect::<Vec<_>>())
}

/// Runs the instructions that the encoder uses, on a context as the kernel gives it.
fn run(program: &[Insn], context: [u32; 3]) -> i64 {
    let mut r = [0i64; 6];
    let mut at = 0usize;
    loop {
        let i = program[at];
        let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        let low = |value: i64| u32::try_from(value & 0xffff_ffff).unwrap();
        at += 1;
        match i.code {
            0x61 => r[dst] = i64::from(context[usize::try_from(i.off / 4).unwrap()]),
            0xbc => r[dst] = i64::from(low(r[src])),
            0x74 => r[dst] = i64::from(low(r[dst]) >> i.imm),
            0x54 => r[dst] = i64::from(low(r[dst]) & i.imm.cast_unsigned()),
            0xb7 => r[dst] = i64::from(i.imm),
            0x56 if low(r[dst]) != i.imm.cast_unsigned() => at += usize::try_from(i.off).unwrap(),
            0x16 if low(r[dst]) == i.imm.cast_unsigned() => at += usize::try_from(i.off).unwrap(),
            0x56 | 0x16 => {}
            0x95 => return r[0],
            code => panic!("unknown instruction {code:#x}"),
        }
    }
}

/// What the rules say of one request, word by word of the documentation of v1.
fn allows(table: &DeviceTable, kind: DeviceKind, major: u32, minor: u32, bits: i32) -> bool {
    let meets = |rule: &&DeviceRule| {
        let nodes = rule.kind == kind
            && rule.major.is_none_or(|m| m == major)
            && rule.minor.is_none_or(|m| m == minor);
        let access =
            if table.allow_others { bits & rule.access.bits() != 0 } else { bits & !rule.access.bits() == 0 };
        nodes && access
    };
    table.exceptions.iter().find(meets).is_some() != table.allow_others
}

#[test]
fn the_program_decides_as_the_rules_say() {
    let lists: [&[&str]; 6] = [
        &[],
        &["- a *:* rwm", "+ c *:* m", "+ c 1:3 rwm", "+ b 8:* r", "+ c 136:* rwm"],
        &["+ a *:* rwm"],
        &["+ a *:* rwm", "- b *:* w", "- c 1:3 m"],
        &["+ a 7:* rw"],
        &["+ c 4294967295:4294967295 r"],
    ];
    let numbers = [0, 1, 3, 7, 8, 136, u32::MAX];
    for list in lists {
        let table = table(list).unwrap();
        let program = table.program();
        for (kind, code) in [(DeviceKind::Block, 1), (DeviceKind::Char, 2)] {
            for (major, minor) in numbers.iter().flat_map(|a| numbers.map(|b| (*a, b))) {
                for bits in 1..8i32 {
                    let got = run(&program, [bits.cast_unsigned() << 16 | code, major, minor]);
                    let want = allows(&table, kind, major, minor, bits);
                    assert_eq!(got == 1, want, "{list:?} {kind:?} {major}:{minor} {bits}");
                }
            }
        }
    }
}

#[test]
fn rules_fold_in_order() {
    let of = |rules: &[&str]| {
        let table = table(rules).unwrap();
        (table.allow_others, table.exceptions.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(of(&["+ c 1:3 rwm", "- a *:* rwm"]), (false, vec![]));
    assert_eq!(of(&["+ c 1:3 r", "+ c 1:3 w"]), (false, vec!["c 1:3 rw".into()]));
    assert_eq!(of(&["+ c 1:3 rwm", "- c 1:3 w"]), (false, vec!["c 1:3 rm".into()]));
    assert_eq!(of(&["+ c 1:3 rwm", "+ c 1:5 rwm", "- c 1:* rwm"]), (false, vec![]));
    assert_eq!(of(&["+ a *:* rwm", "- c 1:3 w", "+ c 1:3 w"]), (true, vec![]));
    assert_eq!(of(&["+ a 5:1 rwm"]), (false, vec!["c 5:1 rwm".into(), "b 5:1 rwm".into()]));
}

#[test]
fn a_hole_in_a_wider_rule_is_refused() {
    for rules in [["+ c *:* rwm", "- c 1:3 w"], ["+ c 1:* r", "- a *:3 r"]] {
        assert_eq!(table(&rules).unwrap_err().kind(), crisp_domain::ErrorKind::Invalid, "{rules:?}");
    }
    let none = DeviceAccess { read: false, write: false, mknod: false };
    assert!(DeviceTable::new(&[DeviceRule { access: none, ..rule("+ c 1:3 r") }]).is_err());
    assert!(DeviceTable::new(&vec![rule("+ c 1:3 r"); DEVICE_RULES_MAX + 1]).is_err());
}

#[test]
fn v1_gets_one_reset_and_the_exceptions() {
    let writes = table(&["- a *:* rwm", "+ c 1:3 rwm", "+ b *:* m"]).unwrap().v1_writes();
    let want = [(true, "a"), (false, "c 1:3 rwm"), (false, "b *:* m")];
    assert_eq!(writes, want.map(|(deny, text)| (deny, text.to_owned())));
    assert!(table(&["+ a *:* rwm"]).unwrap().v1_writes().is_empty());
    assert_eq!(table(&["+ a *:* rwm", "- b *:* m"]).unwrap().v1_writes(), [(true, "b *:* m".to_owned())]);
}

#[test]
fn the_longest_list_fits_into_a_program() {
    let rules: Vec<_> =
        (0..200).map(|major| DeviceRule { major: Some(major), ..rule("+ a 1:1 rw") }).collect();
    let program = DeviceTable::new(&rules).unwrap().program();
    assert!(program.len() <= crisp_sys::bpf::INSNS_MAX, "{}", program.len());
    assert!(DeviceTable::new(&vec![rule("+ c 1:3 r"); DEVICE_RULES_MAX]).is_ok());
}

#[test]
fn access_letters() {
    assert_eq!(DeviceAccess::parse("rwm"), Some(DeviceAccess::RWM));
    assert_eq!(DeviceAccess::parse("mr").unwrap().to_string(), "rm");
    assert_eq!((DeviceAccess::parse(""), DeviceAccess::parse("rx")), (None, None));
}
