//! Scripted plugins on a real socket.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::State;
use crate::api::{
    ConfigureRequest, ConfigureResponse, CreateContainerResponse, Empty, KeyValue, RegisterPluginRequest,
    SynchronizeRequest, SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse,
};
use crate::testing::{LIMIT, Peer};
use crate::ttrpc::{Request, code};

const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

#[derive(Default)]
struct Machine {
    state: Mutex<State>,
    updated: Mutex<Vec<String>>,
    evicted: Mutex<Vec<String>>,
}

impl Runtime for Machine {
    fn state(&self) -> BoxFuture<'_, State> {
        let state = self.state.lock().unwrap().clone();
        Box::pin(async { state })
    }
    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<ContainerUpdate>> {
        let (failed, done): (Vec<_>, Vec<_>) =
            updates.into_iter().partition(|update| update.container_id == "bad");
        self.updated.lock().unwrap().extend(done.into_iter().map(|update| update.container_id));
        Box::pin(async { failed })
    }
    fn evict(&self, evictions: Vec<ContainerEviction>) -> BoxFuture<'_, ()> {
        self.evicted.lock().unwrap().extend(evictions.into_iter().map(|eviction| eviction.container_id));
        Box::pin(async {})
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    machine: Arc<Machine>,
    plugins: Arc<Plugins>,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        runtime_name: "test".to_owned(),
        runtime_version: "1".to_owned(),
        socket: dir.path().join("nri.sock"),
        plugin_dir: dir.path().join("plugins"),
        plugin_config_dir: dir.path().join("conf"),
        registration_timeout: LIMIT,
        request_timeout: LIMIT,
    };
    let machine = Arc::new(Machine::default());
    let plugins = Plugins::new(settings, Arc::clone(&machine) as Arc<dyn Runtime>);
    plugins.start().await.unwrap();
    Bench { _dir: dir, machine, plugins }
}

/// What a plugin answers to a request; `None` is silence for good.
type Script = Box<dyn FnMut(&mut Peer, u32, &Request) -> Option<()> + Send>;

fn no_script() -> Script {
    Box::new(|peer, call, _| {
        peer.answer(call, &Empty {});
        Some(())
    })
}

/// Joins, then answers by `script`. Ends with the connection.
fn plugin(
    bench: &Bench,
    index: &str,
    events: i32,
    mut script: Script,
) -> std::thread::JoinHandle<Vec<String>> {
    let (socket, index) = (bench.plugins.settings.socket.clone(), index.to_owned());
    std::thread::spawn(move || {
        let mut peer = Peer::new(UnixStream::connect(socket).unwrap());
        let me =
            RegisterPluginRequest { plugin_name: "p".to_owned(), plugin_idx: index, ..Default::default() };
        peer.ask((RUNTIME, "RegisterPlugin"), &me);
        peer.response().unwrap();
        let mut methods = Vec::new();
        while let Some((call, request)) = peer.try_request() {
            methods.push(request.method.clone());
            match request.method.as_str() {
                "Configure" => {
                    let configure = ConfigureRequest::decode(request.payload.as_slice()).unwrap();
                    assert_eq!(configure.runtime_name, "test");
                    peer.answer(call, &ConfigureResponse { events });
                }
                "Synchronize" => {
                    let more = SynchronizeRequest::decode(request.payload.as_slice()).unwrap().more;
                    peer.answer(call, &SynchronizeResponse { more, ..Default::default() });
                }
                _ => {
                    if script(&mut peer, call, &request).is_none() {
                        while peer.try_request().is_some() {}
                        break;
                    }
                }
            }
        }
        methods
    })
}

async fn joined(bench: &Bench, count: usize) {
    eventually(|| bench.plugins.count.load(Ordering::Acquire) == count).await;
}

async fn eventually(condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LIMIT, reached).await.expect("in time");
}

/// A plugin's `told` and what hears it.
fn word() -> (tokio::sync::mpsc::Sender<()>, tokio::sync::mpsc::Receiver<()>) {
    tokio::sync::mpsc::channel(1)
}

/// What comes of `asked` when its plugin has `heard` and then says nothing for [`LIMIT`]. Only this time is made to pass: what others
/// need has its own. For a runtime of one thread.
async fn unanswered<T>(asked: impl Future<Output = T>, mut heard: tokio::sync::mpsc::Receiver<()>) -> T {
    let silence = async {
        heard.recv().await.unwrap();
        tokio::time::pause();
        tokio::time::advance(LIMIT).await;
        tokio::time::resume();
    };
    tokio::join!(asked, silence).0
}

fn pod() -> PodSandbox {
    PodSandbox { id: "pod".to_owned(), ..PodSandbox::default() }
}

fn container() -> Container {
    Container { id: "c".to_owned(), ..Container::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_asked_in_order_of_index_and_see_each_other() {
    let bench = bench().await;
    assert!(bench.plugins.is_empty());
    let adds = |key: &'static str| -> Script {
        Box::new(move |peer, call, request| {
            let seen =
                CreateContainerRequest::decode(request.payload.as_slice()).ok()?.container?.env.join(" ");
            let env = vec![KeyValue { key: key.to_owned(), value: format!("after {seen:?}") }];
            let adjust = Some(ContainerAdjustment { env, ..Default::default() });
            peer.answer(call, &CreateContainerResponse { adjust, ..Default::default() });
            Some(())
        })
    };
    let create = 1 << (Event::CreateContainer as i32 - 1);
    let _second = plugin(&bench, "20", create, adds("B"));
    joined(&bench, 1).await;
    let _first = plugin(&bench, "10", create, adds("A"));
    joined(&bench, 2).await;
    let adjusted = bench.plugins.create_container(pod(), container()).await.unwrap();
    let env: Vec<_> = adjusted.adjust.env.iter().map(|v| (v.key.as_str(), v.value.as_str())).collect();
    assert_eq!(env, [("A", "after \"\""), ("B", "after \"A=after \\\"\\\"\"")]);
    // Not subscribed.
    bench.plugins.run_pod(pod()).await.unwrap();
    assert_eq!(bench.plugins.names(), ["10-p", "20-p"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_fails_the_request_and_names_the_plugin() {
    let bench = bench().await;
    let refuses: Script = Box::new(|peer, call, _| {
        peer.refuse(call, code::UNKNOWN, "not today\nthank you");
        Some(())
    });
    let _plugin = plugin(&bench, "10", 0, refuses);
    joined(&bench, 1).await;
    let error = bench.plugins.run_pod(pod()).await.unwrap_err();
    assert_eq!(error.to_string(), "plugin 10-p refused RunPodSandbox: not today thank you");
    assert!(bench.plugins.create_container(pod(), container()).await.is_err());
    assert!(!bench.plugins.is_empty(), "who says no stays");
}

#[tokio::test]
async fn a_plugin_that_hangs_is_disconnected_and_the_others_go_on() {
    let (bench, (told, heard)) = (bench().await, word());
    let hangs: Script = Box::new(move |_, _, _| {
        told.blocking_send(()).unwrap();
        None
    });
    let _hangs = plugin(&bench, "10", 0, hangs);
    joined(&bench, 1).await;
    let good = plugin(&bench, "20", 0, no_script());
    joined(&bench, 2).await;
    unanswered(bench.plugins.run_pod(pod()), heard).await.unwrap();
    joined(&bench, 1).await;
    bench.plugins.stop_pod(pod()).await.unwrap();
    bench.plugins.shut_down().await;
    let asked = good.join().unwrap();
    assert_eq!(asked, ["Configure", "Synchronize", "RunPodSandbox", "StopPodSandbox", "Shutdown"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_plugin_is_forgotten() {
    let bench = bench().await;
    let dies = plugin(&bench, "10", 0, Box::new(|_, _, _| panic!("dies")));
    joined(&bench, 1).await;
    bench.plugins.run_pod(pod()).await.unwrap();
    assert!(dies.join().is_err());
    joined(&bench, 0).await;
    assert!(bench.plugins.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_plugin_gets_state_changes() {
    let bench = bench().await;
    let older: Script = Box::new(|peer, call, request| {
        match request.method.as_str() {
            "StateChange" => peer.answer(call, &Empty {}),
            _ => peer.refuse(call, code::UNIMPLEMENTED, "method"),
        }
        Some(())
    });
    let older = plugin(&bench, "10", 0, older);
    joined(&bench, 1).await;
    bench.plugins.run_pod(pod()).await.unwrap();
    bench.plugins.run_pod(pod()).await.unwrap();
    bench.plugins.shut_down().await;
    let asked = older.join().unwrap();
    assert_eq!(asked[2..], ["RunPodSandbox", "StateChange", "StateChange", "Shutdown"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_created_around_a_registration_reaches_the_plugin_once() {
    let bench = bench().await;
    let creating = bench.plugins.creation().await;
    let (told, heard) = std::sync::mpsc::channel();
    let sync: Script = Box::new(move |peer, call, request| {
        if request.method == "CreateContainer" {
            let container = CreateContainerRequest::decode(request.payload.as_slice()).ok()?.container?;
            told.send(container.id).ok()?;
        }
        peer.answer(call, &CreateContainerResponse::default());
        Some(())
    });
    let plugin = plugin(&bench, "10", 1 << (Event::CreateContainer as i32 - 1), sync);
    // It waits for the creation that is under way.
    eventually(|| bench.plugins.creations.try_read().is_err()).await;
    assert!(bench.plugins.is_empty());
    bench.machine.state.lock().unwrap().containers.push(container());
    drop(creating);
    let later = bench.plugins.creation().await;
    assert!(!bench.plugins.is_empty(), "the next creation waits until the plugin is in the list");
    bench.plugins.create_container(pod(), Container { id: "d".to_owned(), ..container() }).await.unwrap();
    drop(later);
    assert_eq!(heard.recv().unwrap(), "d");
    bench.plugins.shut_down().await;
    assert_eq!(plugin.join().unwrap(), ["Configure", "Synchronize", "CreateContainer", "Shutdown"]);
}

#[tokio::test]
async fn a_plugin_that_never_registers_is_dropped() {
    let bench = bench().await;
    let mut silent = tokio::net::UnixStream::connect(&bench.plugins.settings.socket).await.unwrap();
    // Nothing is under way but the plugin's silence: it is all that time passes for.
    tokio::time::pause();
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    tokio::time::resume();
    let mut bad = Peer::new(UnixStream::connect(&bench.plugins.settings.socket).unwrap());
    let refused = tokio::task::spawn_blocking(move || {
        let name = RegisterPluginRequest {
            plugin_name: "x".to_owned(),
            plugin_idx: "abc".to_owned(),
            ..Default::default()
        };
        bad.ask((RUNTIME, "RegisterPlugin"), &name);
        bad.response().unwrap_err()
    });
    assert!(refused.await.unwrap().message.contains("two digits"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_may_ask_for_changes_by_itself() {
    let bench = bench().await;
    let asks: Script = Box::new(|peer, call, _| {
        let update = |id: &str| ContainerUpdate { container_id: id.to_owned(), ..ContainerUpdate::default() };
        let evict = vec![ContainerEviction { container_id: "e".to_owned(), reason: "why".to_owned() }];
        peer.ask(
            (RUNTIME, "UpdateContainers"),
            &UpdateContainersRequest { update: vec![update("good"), update("bad")], evict },
        );
        let failed = UpdateContainersResponse::decode(peer.response().unwrap().as_slice()).unwrap().failed;
        assert_eq!(failed, [update("bad")]);
        peer.answer(call, &Empty {});
        Some(())
    });
    let _plugin = plugin(&bench, "10", 0, asks);
    joined(&bench, 1).await;
    bench.plugins.run_pod(pod()).await.unwrap();
    assert_eq!(*bench.machine.updated.lock().unwrap(), ["good"]);
    assert_eq!(*bench.machine.evicted.lock().unwrap(), ["e"]);
}

#[tokio::test]
async fn a_validator_has_the_last_word_and_its_silence_is_no() {
    let (bench, (told, heard)) = (bench().await, word());
    let mut count = 0;
    let validator: Script = Box::new(move |peer, call, request| {
        let request = ValidateContainerAdjustmentRequest::decode(request.payload.as_slice()).ok()?;
        assert_eq!((request.plugins.len(), request.container?.id.as_str()), (1, "c"));
        count += 1;
        match count {
            1 => peer.answer(call, &ValidateContainerAdjustmentResponse::default()),
            2 => {
                let reason = "no hooks here".to_owned();
                peer.answer(call, &ValidateContainerAdjustmentResponse { reject: true, reason });
            }
            _ => {
                told.blocking_send(()).unwrap();
                return None;
            }
        }
        Some(())
    });
    let mask = 1 << (Event::ValidateContainerAdjustment as i32 - 1);
    let _plugin = plugin(&bench, "10", mask, validator);
    joined(&bench, 1).await;
    let create = || bench.plugins.create_container(pod(), container());
    create().await.unwrap();
    assert_eq!(create().await.unwrap_err().to_string(), "plugin 10-p refused the adjustment: no hooks here");
    assert!(matches!(unanswered(Box::pin(create()), heard).await.unwrap_err(), NriError::Validator { .. }));
}
