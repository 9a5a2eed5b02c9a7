use std::time::Duration;

use crisp_domain::ErrorKind;
use tokio::net::UnixListener;

use super::*;
use crate::wire::answer;

const OK: &[u8] = b"OK 0123456789abcdef0123456789abcdef\r\n";

/// What the server does with one connection.
enum Script {
    /// Closes at once.
    HangUp,
    /// Refuses the user.
    Reject,
    /// Lets in, then sends these bytes to whatever is called, then closes.
    Say(Vec<Vec<u8>>),
    /// Lets in and never answers.
    Silent,
}

/// A manager that plays one script per connection; the returned task gives what it read after each authentication.
fn serve(scripts: Vec<Script>) -> (tempfile::TempDir, Systemd, tokio::task::JoinHandle<Vec<Vec<u8>>>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("private");
    let listener = UnixListener::bind(&path).unwrap();
    let served = tokio::spawn(async move {
        let mut heard = Vec::new();
        for script in scripts {
            let (stream, _) = listener.accept().await.unwrap();
            heard.push(play(stream, script).await);
        }
        heard
    });
    (dir, Systemd::with([Door { path, kind: DoorKind::Private }].into()), served)
}

async fn play(mut stream: UnixStream, script: Script) -> Vec<u8> {
    let says = match script {
        Script::HangUp => return Vec::new(),
        Script::Reject => {
            stream.write_all(b"REJECTED EXTERNAL\r\n").await.unwrap();
            return until(&mut stream, b"\r\n").await;
        }
        Script::Say(says) => Some(says),
        Script::Silent => None,
    };
    // All of it comes before the answer, and no call comes with it.
    assert!(until(&mut stream, b"BEGIN\r\n").await.starts_with(b"\0AUTH EXTERNAL "));
    assert_eq!(stream.try_read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    stream.write_all(OK).await.unwrap();
    let mut heard = Vec::new();
    for say in says.iter().flatten() {
        heard.extend(message(&mut stream).await);
        stream.write_all(say).await.unwrap();
    }
    if says.is_none() {
        heard = message(&mut stream).await;
        // Until the client gives up.
        let _left = stream.read_u8().await;
    }
    heard
}

async fn until(stream: &mut UnixStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(stream.read_u8().await.unwrap());
    }
    bytes
}

async fn message(stream: &mut UnixStream) -> Vec<u8> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.unwrap();
    let mut rest = vec![0; Head::parse(head).unwrap().rest()];
    stream.read_exact(&mut rest).await.unwrap();
    [head.to_vec(), rest].concat()
}

fn signal() -> Vec<u8> {
    let mut signal = answer(1, None);
    signal[1] = 4;
    signal
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn properties_are_set_and_waited_for_on_one_connection() {
    let noise = [signal(), answer(99, None), answer(1, None)].concat();
    let (_dir, systemd, served) = serve(vec![Script::Say(vec![noise, answer(2, None)])]);
    let properties = [Property { name: "MemoryMax", value: Value::U64(7) }];
    systemd.set_properties("a.scope", &properties).await.unwrap();
    let heard = served.await.unwrap().concat();
    for text in ["SetUnitProperties", "a.scope", "MemoryMax", "GetUnit"] {
        assert!(has(&heard, text), "{text}");
    }
}

#[tokio::test]
async fn a_refusal_tells_its_kind_and_words() {
    for (name, kind) in [
        ("org.freedesktop.systemd1.UnitExists", ErrorKind::Exists),
        ("org.freedesktop.systemd1.NoSuchUnit", ErrorKind::NotFound),
        ("org.freedesktop.DBus.Error.PropertyReadOnly", ErrorKind::Invalid),
        ("org.freedesktop.DBus.Error.Failed", ErrorKind::Internal),
    ] {
        let (_dir, systemd, _served) = serve(vec![Script::Say(vec![answer(1, Some((name, "because")))])]);
        let error = systemd.set_properties("a.scope", &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{name}");
        assert!(error.to_string().contains("SetUnitProperties of a.scope: because"), "{error}");
    }
}

#[tokio::test]
async fn a_broken_connection_is_made_again() {
    let scripts = vec![Script::HangUp, Script::Say(vec![]), Script::Say(vec![answer(1, None)])];
    let (_dir, systemd, served) = serve(scripts);
    assert!(systemd.is_loaded("a.slice").await.unwrap());
    assert_eq!(served.await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_is_no_answer_is_an_error_at_once() {
    let long = [&[b'l', 2, 0, 1][..], &[0xff; 12]].concat();
    for bad in [b"GET / HTTP/1.0\r\n\r\n".to_vec(), long] {
        let (_dir, systemd, _served) = serve(vec![Script::Say(vec![bad])]);
        let error = systemd.is_loaded("a.slice").await.unwrap_err();
        assert!(matches!(error, SystemdError::Protocol { call: "GetUnit", .. }), "{error}");
    }
}

#[tokio::test]
async fn who_is_not_let_in_is_told() {
    let (_dir, systemd, _served) = serve(vec![Script::Reject]);
    let error = systemd.ping().await.unwrap_err();
    assert!(error.to_string().contains("REJECTED EXTERNAL"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn silence_and_absence_end_in_time() {
    let (_dir, systemd, _served) = serve(vec![Script::Silent]);
    let error = systemd.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");

    let nobody =
        Systemd::with([Door { path: "/nonexistent/private".into(), kind: DoorKind::Private }].into());
    let began = Instant::now();
    let error = nobody.ping().await.unwrap_err();
    assert!(matches!(error, SystemdError::Connect { .. }), "{error}");
    assert!(began.elapsed() <= CALL_MAX && began.elapsed() > CALL_MAX / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_bus_is_greeted_first() {
    let (dir, _, served) = serve(vec![Script::Say(vec![answer(1, None), answer(2, None)])]);
    let door = Door { path: dir.path().join("private"), kind: DoorKind::Bus };
    let absent = Door { path: "/nonexistent/private".into(), kind: DoorKind::Private };
    Systemd::with([absent, door].into()).ping().await.unwrap();
    let heard = served.await.unwrap().concat();
    assert!(has(&heard, "Hello") && has(&heard, "Ping"));
}

#[tokio::test]
async fn a_scope_that_systemd_drops_is_an_error() {
    let pid = i32::try_from(std::process::id()).unwrap();
    let gone = answer(1, Some(("org.freedesktop.systemd1.NoSuchUnit", "Unit x.scope not loaded.")));
    let scripts = vec![Script::Say(vec![answer(1, None)]), Script::Say(vec![gone])];
    let (_dir, systemd, served) = serve(scripts);
    let slice = Slice::parse("system.slice").unwrap();
    let request =
        ScopeRequest { unit: "x.scope", slice: &slice, description: "x", pid, properties: Vec::new() };
    let error = systemd.start_scope(&request).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let heard = served.await.unwrap().concat();
    for text in ["StartTransientUnit", "Delegate", "CollectMode", "inactive-or-failed", "system.slice"] {
        assert!(has(&heard, text), "{text}");
    }
}

#[tokio::test]
async fn a_scope_without_a_process_is_an_error() {
    let (_dir, systemd, _served) = serve(vec![Script::Say(vec![answer(1, None)])]);
    let slice = Slice::parse("system.slice").unwrap();
    let request = ScopeRequest {
        unit: "x.scope",
        slice: &slice,
        description: "x",
        pid: i32::MAX,
        properties: Vec::new(),
    };
    assert!(matches!(systemd.start_scope(&request).await, Err(SystemdError::HolderEnded { .. })));
}

#[tokio::test]
async fn what_is_not_there_is_stopped() {
    let gone = || answer(1, Some(("org.freedesktop.systemd1.NoSuchUnit", "Unit x.slice not loaded.")));
    let scripts =
        vec![Script::Say(vec![gone()]), Script::Say(vec![answer(1, None)]), Script::Say(vec![gone()])];
    let (_dir, systemd, served) = serve(scripts);
    systemd.stop("x.slice").await.unwrap();
    systemd.stop("x.slice").await.unwrap();
    assert_eq!(served.await.unwrap().len(), 3);
}

#[test]
fn only_the_last_name_of_the_unified_hierarchy_counts() {
    assert!(is_in("0::/system.slice/x.scope\n", "x.scope"));
    assert!(is_in("1:name=systemd:/a\n0::/x.scope\n", "x.scope"));
    for other in ["0::/x.scope/hold\n", "1:memory:/x.scope\n", "0::/a-x.scope\n", ""] {
        assert!(!is_in(other, "x.scope"), "{other}");
    }
}

#[tokio::test]
async fn many_calls_wait_for_their_turn() {
    let scripts = (0..3 * CONNECTIONS_MAX).map(|_| Script::Say(vec![answer(1, None)])).collect();
    let (_dir, systemd, served) = serve(scripts);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..3 * CONNECTIONS_MAX {
        let systemd = systemd.clone();
        calls.spawn(async move { systemd.ping().await });
    }
    let all = tokio::time::timeout(Duration::from_secs(20), calls.join_all()).await.unwrap();
    assert!(all.iter().all(Result::is_ok));
    served.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_busy_systemd_is_left_time_for_its_jobs() {
    for answer_takes in [Duration::ZERO, Duration::from_secs(3)] {
        let (began, mut question, mut asked) = (Instant::now(), Question::new(), 0);
        while began.elapsed() < SCOPE_WAIT_MAX {
            if question.is_due() {
                tokio::time::advance(answer_takes).await;
                question.answered();
                asked += 1;
                assert!(!question.is_due(), "{answer_takes:?}");
            }
            tokio::time::advance(PAUSE_MAX).await;
        }
        let most = SCOPE_WAIT_MAX.as_secs() / (ASK_PAUSE_MAX + answer_takes).as_secs() + 2;
        assert!(asked >= 3 && asked <= most, "{asked} questions, {answer_takes:?} each");
    }
}
