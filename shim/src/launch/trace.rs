//! Listens to what libcontainer logs on its way into an error: its errors often hold the kernel's answer without the step.

use std::fmt::Write as _;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The first error that was logged: the innermost, which names the step.
static FIRST_ERROR: Mutex<Option<String>> = Mutex::new(None);

/// Listens from now on, in this process and its children.
pub(super) fn install() {
    let _already = tracing::subscriber::set_global_default(Listener);
}

/// The first error that libcontainer logged.
pub(super) fn first_error() -> Option<String> {
    FIRST_ERROR.lock().ok().and_then(|mut text| text.take())
}

struct Listener;

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        if let Ok(mut first) = FIRST_ERROR.lock() {
            first.get_or_insert(text.0);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        let _infallible = match field.name() {
            "message" => {
                self.0.insert_str(0, &format!("{value:?}{gap}"));
                Ok(())
            }
            name => write!(self.0, "{gap}{name}={value:?}"),
        };
    }
}
