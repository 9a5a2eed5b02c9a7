use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crisp_domain::ErrorKind;
use crisp_image::{Auth, AuthFields, ImageError};

use crate::content::{Node, TestImage, chain, layer};
use crate::fake::{Fake, Reply, Request};

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

fn user(username: &str, password: &str) -> Auth {
    Auth::from_fields(&AuthFields { username, password, ..AuthFields::default() }).unwrap()
}

/// A registry that wants `Bearer <token>`, and a token server beside it that gives it to whoever `allows` says.
async fn guarded(token: &'static str, allows: impl Fn(&Request) -> bool + Send + Sync + 'static) -> Fake {
    let fake = Fake::start().await;
    TestImage::new(&[layer("a", 10), layer("b", 10)]).publish(&fake, "team/app", "v1");
    let host = fake.host();
    fake.hook(move |request, _, good| {
        if request.path == "/token" {
            let answer = format!(r#"{{"token":"{token}","expires_in":300}}"#);
            return if allows(request) { Reply::status(200).body(answer) } else { Reply::status(401) };
        }
        if request.header("authorization") == Some(&format!("Bearer {token}")) {
            return good;
        }
        let scope = "repository:team/app:pull";
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="reg",scope="{scope}""#);
        Reply::status(401).with("WWW-Authenticate", &challenge)
    });
    fake
}

#[tokio::test]
async fn one_token_serves_a_whole_pull_and_the_next() {
    let (fake, node) = (guarded("t0k", |_| true).await, Node::new());
    let name = format!("{}/team/app:v1", fake.host());
    node.pull(&name).await.unwrap();
    let asked: Vec<_> = fake.log().into_iter().filter(|r| r.path == "/token").collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].query, "service=reg&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(asked[0].header("authorization"), None);
    node.pull(&name).await.unwrap();
    assert_eq!(fake.count("/token"), 1, "the token is kept");
}

#[tokio::test]
async fn a_password_goes_to_the_token_server() {
    let allows = |r: &Request| r.header("authorization") == Some(&basic("u", "p:w"));
    let (fake, node) = (guarded("t0k", allows).await, Node::new());
    let name = format!("{}/team/app:v1", fake.host());
    node.images.pull(&name, user("u", "p:w"), &|_| ()).await.unwrap();
    let error = node.images.pull(&name, user("u", "wrong"), &|_| ()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("401") && !chain(&error).contains("wrong"), "{error}");
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let allows = |r: &Request| {
        r.method == "POST"
            && r.body.contains("grant_type=refresh_token")
            && r.body.contains("refresh_token=id%2Btoken")
            && r.body.contains("service=reg")
    };
    let (fake, node) = (guarded("t0k", allows).await, Node::new());
    let fields = AuthFields { identity_token: "id+token", ..AuthFields::default() };
    let auth = Auth::from_fields(&fields).unwrap();
    node.images.pull(&format!("{}/team/app:v1", fake.host()), auth, &|_| ()).await.unwrap();
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is() {
    let (fake, node) = (guarded("mine", |_| false).await, Node::new());
    let fields = AuthFields { registry_token: "mine", ..AuthFields::default() };
    let auth = Auth::from_fields(&fields).unwrap();
    node.images.pull(&format!("{}/team/app:v1", fake.host()), auth, &|_| ()).await.unwrap();
    assert_eq!(fake.count("/token"), 0);
}

#[tokio::test]
async fn a_token_that_is_refused_later_is_renewed() {
    let fake = Fake::start().await;
    TestImage::new(&[layer("a", 10)]).publish(&fake, "app", "v1");
    let (given, host) = (Arc::new(AtomicUsize::new(0)), fake.host());
    fake.hook(move |request, _, good| {
        if request.path == "/token" {
            let n = given.fetch_add(1, Ordering::Relaxed) + 1;
            return Reply::status(200).body(format!(r#"{{"access_token":"t{n}","expires_in":300}}"#));
        }
        // The first token is good for documents only.
        let wanted = if request.path.contains("/blobs/") { "Bearer t2" } else { "Bearer t" };
        if request.header("authorization").is_some_and(|a| a.starts_with(wanted)) {
            return good;
        }
        Reply::status(401).with("WWW-Authenticate", &format!(r#"Bearer realm="http://{host}/token""#))
    });
    Node::new().pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    let scope = "scope=repository%3Aapp%3Apull";
    assert!(fake.log().iter().filter(|r| r.path == "/token").all(|r| r.query == scope));
}

async fn with_basic() -> Fake {
    let fake = Fake::start().await;
    TestImage::new(&[layer("a", 10)]).publish(&fake, "app", "v1");
    fake.hook(|request, _, good| match request.header("authorization") {
        Some(a) if a == basic("u", "p") => good,
        _ => Reply::status(401).with("WWW-Authenticate", r#"Basic realm="x""#),
    });
    fake
}

#[tokio::test]
async fn basic_authentication_comes_after_a_refusal() {
    let (fake, node) = (with_basic().await, Node::new());
    let name = format!("{}/app:v1", fake.host());
    let error = node.pull(&name).await.unwrap_err();
    assert!(matches!(error.root(), ImageError::Denied { .. }), "{error:?}");
    assert!(error.to_string().contains(&fake.host()) && error.to_string().contains("app:v1"), "{error}");
    assert!(!error.is_registry_unavailable());
    fake.forget_log();
    node.images.pull(&name, user("u", "p"), &|_| ()).await.unwrap();
    let first = &fake.log()[0];
    assert_eq!(first.header("authorization"), None, "anonymous first");
}

#[tokio::test]
async fn credentials_for_another_host_are_not_sent() {
    let (fake, node) = (with_basic().await, Node::new());
    let fields = AuthFields {
        username: "u",
        password: "p",
        server_address: "https://other.io",
        ..AuthFields::default()
    };
    let auth = Auth::from_fields(&fields).unwrap();
    assert!(node.images.pull(&format!("{}/app:v1", fake.host()), auth, &|_| ()).await.is_err());
    assert!(fake.log().iter().all(|r| r.header("authorization").is_none()));
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let (fake, store, node) = (with_basic().await, Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 100_000)]);
    image.publish(&fake, "app", "v1");
    image.publish_blobs(&store, "elsewhere");
    let target = store.host();
    fake.hook(move |request, _, good| match request.header("authorization") {
        Some(a) if a == basic("u", "p") && request.path.contains("/blobs/") => {
            let path = request.path.replace("/app/", "/elsewhere/");
            Reply::status(307).with("Location", &format!("http://{target}{path}?X-Signature=s3cret"))
        }
        Some(a) if a == basic("u", "p") => good,
        _ => Reply::status(401).with("WWW-Authenticate", "Basic"),
    });
    let name = format!("{}/app:v1", fake.host());
    node.images.pull(&name, user("u", "p"), &|_| ()).await.unwrap();
    assert_eq!(store.log().len(), 2);
    assert!(
        store.log().iter().all(|r| r.header("authorization").is_none() && r.query.contains("X-Signature"))
    );

    // The other host's address may be a credential in itself.
    store.hook(|_, _, _| Reply::status(403));
    let error = Node::new().images.pull(&name, user("u", "p"), &|_| ()).await.unwrap_err();
    assert!(!chain(&error).contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_registry_that_refuses_forever_is_asked_a_few_times_only() {
    let (fake, node) = (guarded("t0k", |_| true).await, Node::new());
    let host = fake.host();
    fake.hook(move |request, _, _| match request.path.as_str() {
        "/token" => Reply::status(200).body(r#"{"token":"x"}"#),
        _ => Reply::status(401).with("WWW-Authenticate", &format!(r#"Bearer realm="http://{host}/token""#)),
    });
    let error = node.pull(&format!("{}/team/app:v1", fake.host())).await.unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert!(fake.log().len() < 16, "{:?}", fake.asked());
}
