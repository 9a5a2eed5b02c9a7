use super::*;
use crate::api::{
    CdiDevice, Hook, Hooks, KeyValue, LinuxContainer, LinuxCpu, LinuxMemory, Mount, OptionalInt,
    OptionalInt64, OptionalString, OptionalUInt64,
};

fn mount(destination: &str) -> Mount {
    Mount { destination: destination.to_owned(), source: "/s".to_owned(), ..Mount::default() }
}

fn variable(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn limit(bytes: i64) -> LinuxResources {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: bytes }), ..LinuxMemory::default() };
    LinuxResources { memory: Some(memory), ..LinuxResources::default() }
}

fn creation() -> Creation {
    let container = Container {
        id: "c".to_owned(),
        env: vec!["A=1".to_owned(), "B=2".to_owned(), "NAKED".to_owned()],
        mounts: vec![mount("/etc"), mount("/data")],
        annotations: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        args: vec!["sleep".to_owned()],
        linux: Some(LinuxContainer { resources: Some(limit(100)), ..LinuxContainer::default() }),
        ..Container::default()
    };
    Creation::new(PodSandbox::default(), container)
}

fn answer(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse { adjust: Some(adjust), ..CreateContainerResponse::default() }
}

fn env(variables: &[(&str, &str)]) -> CreateContainerResponse {
    let env = variables.iter().map(|(key, value)| variable(key, value)).collect();
    answer(ContainerAdjustment { env, ..ContainerAdjustment::default() })
}

fn linux(linux: LinuxContainerAdjustment) -> CreateContainerResponse {
    answer(ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() })
}

#[test]
fn the_next_plugin_sees_what_the_last_one_did() {
    let mut creation = creation();
    creation.apply("00-a", env(&[("B", "3"), ("-A", ""), ("C", "4")])).unwrap();
    assert_eq!(creation.container.env, ["NAKED=", "B=3", "C=4"]);
    let keys: Vec<_> = creation.adjust.env.iter().map(|variable| variable.key.as_str()).collect();
    assert_eq!(keys, ["-A", "B", "C"]);
    let mounts = vec![mount("-/data"), mount("/new")];
    let adjust = ContainerAdjustment { mounts, ..ContainerAdjustment::default() };
    creation.apply("01-b", answer(adjust)).unwrap();
    let seen: Vec<_> = creation.container.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(seen, ["/etc", "/new"]);
    creation
        .apply("02-c", linux(LinuxContainerAdjustment { resources: Some(limit(7)), ..Default::default() }))
        .unwrap();
    let seen = creation.container.linux.unwrap().resources.unwrap().memory.unwrap();
    assert_eq!(seen.limit, Some(OptionalInt64 { value: 7 }));
}

#[test]
fn two_plugins_that_set_the_same_are_named() {
    let adjustments: [(&str, CreateContainerResponse); 8] = [
        ("Env X", env(&[("X", "1")])),
        ("Mounts /m", answer(ContainerAdjustment { mounts: vec![mount("/m")], ..Default::default() })),
        ("Args", answer(ContainerAdjustment { args: vec!["x".to_owned()], ..Default::default() })),
        (
            "CdiDevices v/c=d",
            answer(ContainerAdjustment {
                cdi_devices: vec![CdiDevice { name: "v/c=d".to_owned() }],
                ..Default::default()
            }),
        ),
        ("MemLimit", linux(LinuxContainerAdjustment { resources: Some(limit(1)), ..Default::default() })),
        (
            "OomScoreAdj",
            linux(LinuxContainerAdjustment {
                oom_score_adj: Some(OptionalInt { value: 1 }),
                ..Default::default()
            }),
        ),
        (
            "Sysctl net.x",
            linux(LinuxContainerAdjustment {
                sysctl: BTreeMap::from([("net.x".to_owned(), "1".to_owned())]),
                ..Default::default()
            }),
        ),
        (
            "RdtClosID",
            linux(LinuxContainerAdjustment {
                rdt: Some(LinuxRdt {
                    clos_id: Some(OptionalString { value: "x".to_owned() }),
                    ..LinuxRdt::default()
                }),
                ..Default::default()
            }),
        ),
    ];
    for (field, adjustment) in adjustments {
        let mut creation = creation();
        creation.apply("00-a", adjustment.clone()).unwrap();
        let error = creation.apply("10-b", adjustment).unwrap_err();
        assert_eq!(error.to_string(), format!("plugins 00-a and 10-b both set {field}"));
    }
}

#[test]
fn who_removes_first_may_set_anew() {
    let mut creation = creation();
    creation.apply("00-a", env(&[("X", "1")])).unwrap();
    creation.apply("10-b", env(&[("X", "2"), ("-X", "")])).unwrap();
    let last = creation.adjust.env.last().unwrap();
    assert_eq!((last.key.as_str(), last.value.as_str()), ("X", "2"));
    assert!(creation.apply("20-c", env(&[("X", "3")])).is_err());
    let args = |args: &[&str]| {
        answer(ContainerAdjustment {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Default::default()
        })
    };
    let mut creation = self::creation();
    creation.apply("00-a", args(&["one"])).unwrap();
    creation.apply("10-b", args(&["", "two", "2"])).unwrap();
    assert_eq!(creation.adjust.args, ["two", "2"]);
    assert_eq!(creation.container.args, ["two", "2"]);
}

#[test]
fn hooks_add_up_and_have_all_their_owners() {
    let hooks = |path: &str| {
        let hook = Hook { path: path.to_owned(), ..Hook::default() };
        answer(ContainerAdjustment {
            hooks: Some(Hooks { prestart: vec![hook], ..Hooks::default() }),
            ..ContainerAdjustment::default()
        })
    };
    let mut creation = creation();
    creation.apply("00-a", hooks("/a")).unwrap();
    creation.apply("10-b", hooks("/b")).unwrap();
    assert_eq!(creation.adjust.hooks.unwrap().prestart.len(), 2);
    let owners = &creation.updates.owners.owners["c"].simple[&i32::from(Field::OciHooks)];
    assert_eq!(owners, "00-a,10-b");
}

#[test]
fn a_creation_cannot_update_itself() {
    let update = ContainerUpdate { container_id: "c".to_owned(), ..ContainerUpdate::default() };
    let answer = CreateContainerResponse { update: vec![update], ..CreateContainerResponse::default() };
    assert!(matches!(creation().apply("00-a", answer), Err(NriError::Answer { .. })));
}

fn update(id: &str, resources: LinuxResources) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(resources) });
    ContainerUpdate { container_id: id.to_owned(), linux, ignore_failure: true }
}

fn firm(update: ContainerUpdate) -> ContainerUpdate {
    ContainerUpdate { ignore_failure: false, ..update }
}

#[test]
fn updates_of_one_container_come_together() {
    let shares = LinuxResources {
        cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value: 9 }), ..LinuxCpu::default() }),
        ..LinuxResources::default()
    };
    let mut updates = Updates::of_request("own", limit(5));
    updates.apply("00-a", vec![update("x", limit(1)), firm(update("own", limit(6)))], vec![]).unwrap();
    updates.apply("10-b", vec![update("x", shares)], vec![]).unwrap();
    assert!(updates.apply("10-b", vec![firm(update("x", limit(2)))], vec![]).is_err());
    updates.apply("10-b", vec![update("x", limit(2))], vec![]).unwrap();
    assert_eq!(updates.take("own"), Some(limit(6)));
    let list = updates.list();
    assert_eq!(list.len(), 1);
    let merged = list[0].linux.clone().unwrap().resources.unwrap();
    assert_eq!((merged.memory, merged.cpu.unwrap().shares.unwrap().value), (limit(1).memory, 9));
    assert!(list[0].ignore_failure);
}

proptest::proptest! {
    /// Whatever keys several plugins use: nobody's value is lost without an error, and what a plugin removed is gone.
    #[test]
    fn the_container_is_what_the_adjustment_makes_of_it(
        plugins in proptest::collection::vec(proptest::collection::vec(("-?[a-c]", "[0-9]"), 0..4), 0..4),
    ) {
        let mut creation = creation();
        let before = creation.container.annotations.clone();
        for (number, changes) in plugins.iter().enumerate() {
            let annotations = changes.iter().cloned().collect();
            let adjust = ContainerAdjustment { annotations, ..ContainerAdjustment::default() };
            if creation.apply(&format!("{number:02}-p"), answer(adjust)).is_err() {
                return Ok(());
            }
        }
        let mut made = before;
        for (key, _) in creation.adjust.annotations.iter().filter_map(|(key, v)| removal(key).map(|key| (key, v))) {
            made.remove(key);
        }
        let set = creation.adjust.annotations.iter().filter(|(key, _)| removal(key).is_none());
        made.extend(set.map(|(key, value)| (key.clone(), value.clone())));
        proptest::prop_assert_eq!(made, creation.container.annotations);
    }
}
