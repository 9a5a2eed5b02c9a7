use std::fs;

use super::*;
use AppArmorRequest::{Localhost, RuntimeDefault, Unconfined, Unset};
use Privilege::{Ordinary, Privileged};

/// A machine in a folder: the switch, the list, a parser that is a shell script.
struct Fake {
    dir: tempfile::TempDir,
}

impl Fake {
    fn new(enabled: &str, loaded: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sbin")).unwrap();
        fs::write(dir.path().join("enabled"), enabled).unwrap();
        let list: String = loaded.iter().map(|name| format!("{name} (enforce)\n")).collect();
        fs::write(dir.path().join("list"), list).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// `script` runs with the profile on stdin.
    ///
    /// Written by a child: were it open for writing in this process, parsers that other tests begin at the same time would hold it for
    /// a moment, too; and what somebody may write to is not executed (ETXTBSY).
    fn parser(self, script: &str) -> Self {
        let write = r#"printf '#!/bin/sh\n%s\n' "$2" >"$1" && chmod 755 "$1""#;
        let args = ["-c", write, "sh", &self.path("sbin/apparmor_parser"), script];
        assert!(std::process::Command::new("/bin/sh").args(args).status().unwrap().success());
        self
    }

    /// A parser that keeps what it was given, one more line in `calls` each time.
    fn good_parser(self) -> Self {
        let script = format!(
            "cat >{}; echo \"$@\" >>{}; echo 'crisp-default (enforce)' >>{}",
            self.path("text"),
            self.path("calls"),
            self.path("list")
        );
        self.parser(&script)
    }

    fn calls(&self) -> usize {
        fs::read_to_string(self.path("calls")).unwrap_or_default().lines().count()
    }

    fn open(&self, default: Default) -> AppArmor {
        let places = Places {
            switch: self.path("enabled").into(),
            list: self.path("list").into(),
            config: self.path("apparmor.d").into(),
            parser_dirs: vec![self.path("sbin").into()],
        };
        AppArmor::at(default, self.dir.path(), places)
    }
}

fn local(name: &str) -> AppArmorRequest {
    Localhost(name.to_owned())
}

#[test]
fn requests_mean_what_the_contract_says() {
    let fake = Fake::new("Y\n", &["mine"]).good_parser();
    let apparmor = fake.open(Default::Own);
    let default = Some(DEFAULT_PROFILE.to_owned());
    let cases = [
        (Unset, Ordinary, default.clone()),
        (RuntimeDefault, Ordinary, default),
        (Unconfined, Ordinary, None),
        (local("mine"), Ordinary, Some("mine".to_owned())),
        (Unset, Privileged, None),
        (RuntimeDefault, Privileged, None),
        (Unconfined, Privileged, None),
        (local("mine"), Privileged, Some("mine".to_owned())),
    ];
    for (request, privilege, expected) in cases {
        assert_eq!(apparmor.profile(&request, privilege).unwrap(), expected, "{request:?} {privilege:?}");
    }
    for privilege in [Ordinary, Privileged] {
        let error = apparmor.profile(&local("other"), privilege).unwrap_err();
        assert!(matches!(&error, LsmError::NotLoaded { profile } if profile == "other"), "{error}");
    }
}

#[test]
fn a_machine_without_apparmor_refuses_what_is_asked_for() {
    let fake = Fake::new("N\n", &["mine"]).good_parser();
    let apparmor = fake.open(Default::Own);
    apparmor.warm_up();
    for request in [Unset, Unconfined] {
        assert_eq!(apparmor.profile(&request, Ordinary).unwrap(), None);
    }
    for request in [RuntimeDefault, local("mine")] {
        assert!(
            matches!(apparmor.profile(&request, Ordinary), Err(LsmError::NoAppArmor { .. })),
            "{request:?}"
        );
    }
    assert_eq!(fake.calls(), 0);
    assert_eq!(fake.open(Default::Own).places.state(), State::Absent);
}

#[test]
fn the_default_profile_is_loaded_once_and_again_when_it_is_gone_or_changed() {
    let fake = Fake::new("Y\n", &[]).good_parser();
    let apparmor = fake.open(Default::Own);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| apparmor.profile(&Unset, Ordinary).unwrap());
        }
    });
    assert_eq!(fake.calls(), 1);
    assert_eq!(fs::read_to_string(fake.path("calls")).unwrap(), "--replace --skip-cache --quiet\n");
    assert!(fs::read_to_string(fake.path("text")).unwrap().starts_with("profile crisp-default "));
    fake.open(Default::Own).warm_up();
    assert_eq!(fake.calls(), 1, "another start of the daemon finds it");
    fs::write(fake.path("list"), "").unwrap();
    apparmor.profile(&Unset, Ordinary).unwrap();
    assert_eq!(fake.calls(), 2, "somebody unloaded it");
    fs::write(fake.path(DEFAULT_PROFILE), "profile of an older version").unwrap();
    fake.open(Default::Own).warm_up();
    assert_eq!(fake.calls(), 3, "an older version loaded it");
}

#[test]
fn without_a_parser_only_who_asks_is_refused() {
    let fake = Fake::new("Y\n", &[]);
    let apparmor = fake.open(Default::Own);
    assert_eq!(apparmor.places.state(), State::WithoutParser);
    assert_eq!(apparmor.profile(&Unset, Ordinary).unwrap(), None);
    let error = apparmor.profile(&RuntimeDefault, Ordinary).unwrap_err().to_string();
    assert!(error.contains("install the package apparmor"), "{error}");
    let fake = fake.good_parser();
    assert_eq!(apparmor.profile(&RuntimeDefault, Ordinary).unwrap().as_deref(), Some(DEFAULT_PROFILE));
    assert_eq!(fake.calls(), 1, "the package was installed meanwhile");
}

#[test]
fn a_parser_that_fails_is_quoted() {
    let fake = Fake::new("Y\n", &[]).parser("echo 'AppArmor parser error: unknown rule' >&2; exit 1");
    let error = fake.open(Default::Own).profile(&RuntimeDefault, Ordinary).unwrap_err().to_string();
    assert!(error.contains("exit status: 1: AppArmor parser error: unknown rule"), "{error}");
    let liar = Fake::new("Y\n", &[]).parser("exit 0");
    let error = liar.open(Default::Own).profile(&RuntimeDefault, Ordinary).unwrap_err().to_string();
    assert!(error.contains("does not list it"), "{error}");
}

#[test]
fn the_operator_names_another_default_or_none() {
    let fake = Fake::new("Y\n", &["site"]).good_parser();
    let named = |name: &str| fake.open(Default::Named(name.to_owned()));
    for request in [Unset, RuntimeDefault] {
        assert_eq!(named("site").profile(&request, Ordinary).unwrap().as_deref(), Some("site"));
        assert!(matches!(named("gone").profile(&request, Ordinary), Err(LsmError::NotLoaded { .. })));
    }
    let off = fake.open(Default::Off);
    assert_eq!(off.profile(&Unset, Ordinary).unwrap(), None);
    assert!(matches!(off.profile(&RuntimeDefault, Ordinary), Err(LsmError::DefaultOff)));
    assert_eq!(off.profile(&local("site"), Ordinary).unwrap().as_deref(), Some("site"));
    assert_eq!(fake.calls(), 0);
}

#[test]
fn an_unreadable_or_endless_list_is_an_error() {
    let fake = Fake::new("Y\n", &[]).good_parser();
    fs::write(fake.path("list"), vec![b'x'; usize::try_from(LIST_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(matches!(fake.open(Default::Own).profile(&local("x"), Ordinary), Err(LsmError::Read { .. })));
    fs::remove_file(fake.path("list")).unwrap();
    assert!(matches!(fake.open(Default::Own).profile(&local("x"), Ordinary), Err(LsmError::Read { .. })));
}

#[test]
fn names_may_hold_spaces() {
    let list = "crisp-default (enforce)\n/usr/bin/a b (complain)\nno mode\n";
    assert_eq!(names(list), BTreeSet::from(["crisp-default".to_owned(), "/usr/bin/a b".to_owned()]));
}
