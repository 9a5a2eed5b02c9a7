//! The deadline of a call, in the server: what is not answered in time is answered with DEADLINE_EXCEEDED.
//!
//! The HTTP/2 stack ends such calls too, but calls them cancelled; so this looks at the same header and is a little earlier.

use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// How much earlier than the HTTP/2 stack and the client, who began to count first: on a busy node the call and its answer take a
/// while, and a client that ends the call itself does not hear the reason.
const EARLIER: Duration = Duration::from_millis(25);
/// The part of a shorter limit that serves instead.
const EARLIER_PART: u32 = 10;
/// The header in which a client says how long it waits (gRPC over HTTP2, "Requests").
const HEADER: &str = "grpc-timeout";
/// Digits of a timeout (the same place).
const DIGITS_MAX: usize = 8;

/// Puts a deadline on the calls of a service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline;

impl<S> Layer<S> for Deadline {
    type Service = InTime<S>;

    fn layer(&self, inner: S) -> InTime<S> {
        InTime { inner }
    }
}

/// A service whose calls are answered in time.
#[derive(Debug, Clone)]
pub(crate) struct InTime<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for InTime<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let limit = of(request.headers());
        let answer = self.inner.call(request);
        let Some(limit) = limit else { return Box::pin(answer) };
        Box::pin(async move {
            let in_time = tokio::time::timeout(limit - EARLIER.min(limit / EARLIER_PART), answer).await;
            in_time.unwrap_or_else(|_elapsed| Ok(Status::deadline_exceeded(late()).into_http()))
        })
    }
}

/// What a late call is told, with what holds up calls now.
fn late() -> String {
    let late = "the call was not done by its deadline".to_owned();
    match crate::blocking::busy() {
        Some(busy) => format!("{late}: {busy}"),
        None => late,
    }
}

/// What the client says; `None` for no limit and for what is no timeout.
fn of(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(HEADER)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > DIGITS_MAX {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, text.parse().unwrap());
        of(&headers)
    }

    #[test]
    fn every_unit_is_read_and_nothing_else() {
        assert_eq!(said("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(said("3M"), Some(Duration::from_secs(180)));
        assert_eq!(said("4S"), Some(Duration::from_secs(4)));
        assert_eq!(said("5m"), Some(Duration::from_millis(5)));
        assert_eq!(said("6u"), Some(Duration::from_micros(6)));
        assert_eq!(said("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for wrong in ["", "S", "1", "1x", "123456789S", "-1S", "1.5S"] {
            assert_eq!(said(wrong), None, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_is_a_deadline_exceeded() {
        let slow = tower::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok::<_, std::convert::Infallible>(Response::new(Body::empty()))
        });
        for (limit, code) in [("2S", Some("4")), ("20S", None)] {
            let request = Request::builder().header(HEADER, limit).body(Body::empty()).unwrap();
            let answer = Deadline.layer(slow).call(request).await.unwrap();
            let status = answer.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
            assert_eq!(status.as_deref(), code, "{limit}");
        }
    }
}
