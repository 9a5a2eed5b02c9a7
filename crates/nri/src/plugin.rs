//! A plugin that has registered: what it subscribed, and its requests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prost::Message;

use crate::api::{
    ConfigureRequest, ConfigureResponse, Container, Event, PluginInstance, PodSandbox, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse,
};
use crate::connection::{CallError, Connection};
use crate::error::NriError;
use crate::launch::Process;
use crate::ttrpc::{self, code};
use crate::{Settings, State, api};

/// The plugin's service.
const SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// NRI's version whose messages these are.
const NRI_VERSION: &str = "v0.12.1";
/// Every event there is: bit n-1 for number n.
const ALL_EVENTS: u32 = (1 << (Event::Last as u32 - 1)) - 1;
/// Bytes of one synchronisation message: what fits in a ttrpc message beside its envelope.
const SYNC_BYTES_MAX: usize = ttrpc::MESSAGE_BYTES_MAX - 4096;
/// Bytes of what a plugin says, in an error.
const MESSAGE_CHARS_MAX: usize = 1024;
/// Characters of a plugin's name.
const NAME_CHARS_MAX: usize = 128;

/// Who a plugin is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    /// Two digits; plugins are asked in this order.
    pub(crate) index: String,
    pub(crate) name: String,
}

impl Identity {
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn new(index: &str, name: &str) -> Result<Self, String> {
        if index.len() != 2 || !index.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("index {index:?} is not two digits"));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(allowed) {
            return Err(format!("name {name:?} is not 1 to {NAME_CHARS_MAX} letters, digits and -_.+"));
        }
        Ok(Self { index: index.to_owned(), name: name.to_owned() })
    }

    /// Of a plugin's file, `NN-name`.
    pub(crate) fn of_file(file: &str) -> Result<Self, String> {
        let (index, name) = file.split_once('-').ok_or_else(|| format!("{file:?} is not NN-name"))?;
        Self::new(index, name)
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.index, self.name)
    }
}

/// A plugin.
#[derive(Debug)]
pub(crate) struct Plugin {
    pub(crate) identity: Identity,
    pub(crate) connection: Connection,
    events: u32,
    /// Events whose own call it does not have; they go as StateChange.
    without_call: AtomicU32,
    /// It is asked one thing at a time, in the order of things.
    turn: tokio::sync::Mutex<()>,
    request_timeout: Duration,
    /// Of one that we launched.
    process: Option<Process>,
}

impl Plugin {
    /// Tells a registered plugin its configuration; it answers with what it wants to hear of.
    ///
    /// # Errors
    /// [`NriError::Join`].
    pub(crate) async fn configure(
        identity: Identity,
        connection: Connection,
        config: String,
        settings: &Settings,
        process: Option<Process>,
    ) -> Result<Self, NriError> {
        let millis = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let request = ConfigureRequest {
            config,
            runtime_name: settings.runtime_name.clone(),
            runtime_version: settings.runtime_version.clone(),
            registration_timeout: millis(settings.registration_timeout),
            request_timeout: millis(settings.request_timeout),
            nri_version: NRI_VERSION.to_owned(),
        };
        let join = |cause: String| NriError::Join { plugin: identity.to_string(), cause };
        let answer: ConfigureResponse = connection
            .call((SERVICE, "Configure"), request.encode_to_vec(), settings.request_timeout)
            .await
            .map_err(|error| join(format!("configure it: {error}")))?;
        // The mask is a set of bits, whatever the sign of the number.
        let mask = answer.events.cast_unsigned();
        if mask & !ALL_EVENTS != 0 {
            return Err(join(format!("it subscribes events that do not exist: {mask:#x}")));
        }
        Ok(Self {
            events: if mask == 0 { ALL_EVENTS } else { mask },
            without_call: AtomicU32::new(0),
            turn: tokio::sync::Mutex::new(()),
            request_timeout: settings.request_timeout,
            identity,
            connection,
            process,
        })
    }

    pub(crate) fn instance(&self) -> PluginInstance {
        PluginInstance { name: self.identity.name.clone(), index: self.identity.index.clone() }
    }

    pub(crate) fn is_subscribed(&self, event: Event) -> bool {
        self.events & bit(event) != 0 && !self.connection.is_closed()
    }

    /// Ends the process, where we launched one. Blocks until it is gone.
    pub(crate) fn end_process(&self) {
        if let Some(process) = &self.process {
            process.end();
        }
    }

    /// Tells what exists, within `limit` altogether.
    ///
    /// # Errors
    /// [`NriError::Join`].
    pub(crate) async fn synchronize(
        &self,
        state: State,
        limit: Duration,
    ) -> Result<Vec<api::ContainerUpdate>, NriError> {
        let join = |cause: String| NriError::Join { plugin: self.identity.to_string(), cause };
        let deadline = tokio::time::Instant::now() + limit;
        let mut parts = parts(state, SYNC_BYTES_MAX).into_iter().peekable();
        while let Some(mut part) = parts.next() {
            part.more = parts.peek().is_some();
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let answer: SynchronizeResponse = self
                .connection
                .call((SERVICE, "Synchronize"), part.encode_to_vec(), left)
                .await
                .map_err(|error| join(format!("synchronise it: {error}")))?;
            if !part.more {
                return Ok(answer.update);
            }
            if !answer.more || !answer.update.is_empty() {
                return Err(join("it does not take what exists in parts".to_owned()));
            }
        }
        Ok(Vec::new())
    }

    /// Asks for `event`, if the plugin subscribed it. `None` when it did not, or when it is gone: who is late or breaks the
    /// protocol is disconnected, and the request goes on without it.
    ///
    /// # Errors
    /// [`NriError::Refused`].
    pub(crate) async fn ask<A: Message + Default>(
        &self,
        event: Event,
        request: &impl Message,
    ) -> Result<Option<A>, NriError> {
        if !self.is_subscribed(event) {
            return Ok(None);
        }
        let _turn = self.turn.lock().await;
        if self.connection.is_closed() {
            return Ok(None);
        }
        let asked =
            self.connection.call((SERVICE, call_name(event)), request.encode_to_vec(), self.request_timeout);
        match asked.await {
            Ok(answer) => Ok(Some(answer)),
            Err(CallError::Refused { code, message }) => Err(self.refused(event, code, &message)),
            Err(error) => {
                self.disconnect(event, &error);
                Ok(None)
            }
        }
    }

    /// Tells of an event whose answer is empty, by its own call or, to a plugin that lacks it, by StateChange.
    ///
    /// # Errors
    /// [`NriError::Refused`].
    pub(crate) async fn tell(
        &self,
        event: Event,
        request: &impl Message,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<(), NriError> {
        if !self.is_subscribed(event) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if self.without_call.load(Ordering::Relaxed) & bit(event) == 0 {
            let told = self.connection.call::<api::Empty>(
                (SERVICE, call_name(event)),
                request.encode_to_vec(),
                self.request_timeout,
            );
            match told.await {
                Err(CallError::Refused { code: code::UNIMPLEMENTED, .. }) => {
                    self.without_call.fetch_or(bit(event), Ordering::Relaxed);
                }
                other => return self.told(event, other),
            }
        }
        let change =
            StateChangeEvent { event: event.into(), pod: Some(pod.clone()), container: container.cloned() };
        let told = self
            .connection
            .call((SERVICE, "StateChange"), change.encode_to_vec(), self.request_timeout)
            .await;
        self.told(event, told)
    }

    fn told(&self, event: Event, told: Result<api::Empty, CallError>) -> Result<(), NriError> {
        match told {
            // A plugin without even StateChange does not mind.
            Ok(api::Empty {}) | Err(CallError::Refused { code: code::UNIMPLEMENTED, .. }) => Ok(()),
            Err(CallError::Refused { code, message }) => Err(self.refused(event, code, &message)),
            Err(error) => {
                self.disconnect(event, &error);
                Ok(())
            }
        }
    }

    fn refused(&self, event: Event, code: i32, message: &str) -> NriError {
        let line: String =
            message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
        let message = if line.is_empty() { format!("code {code}") } else { line };
        NriError::Refused { plugin: self.identity.to_string(), call: call_name(event), message }
    }

    fn disconnect(&self, event: Event, error: &CallError) {
        let already = self.connection.is_closed();
        self.connection.close(&format!("{}: {error}", call_name(event)));
        if !already {
            tracing::warn!(plugin = %self.identity, call = call_name(event), %error, "plugin disconnected");
        }
    }

    /// Says goodbye; what the plugin makes of it does not matter.
    pub(crate) async fn shut_down(&self, limit: Duration) {
        let said = self.connection.call::<api::Empty>((SERVICE, "Shutdown"), Vec::new(), limit).await;
        tracing::debug!(plugin = %self.identity, ?said, "told a plugin that the runtime ends");
        self.connection.close("the runtime ends");
    }
}

fn bit(event: Event) -> u32 {
    1 << (event as u32).saturating_sub(1)
}

/// Name of the event's own call.
fn call_name(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

/// What exists, in messages of at most `bytes_max`: pods before containers, so that a plugin knows a container's pod. At least one.
fn parts(state: State, bytes_max: usize) -> Vec<SynchronizeRequest> {
    let mut parts = vec![SynchronizeRequest::default()];
    let mut used = 0;
    let mut room = |parts: &mut Vec<SynchronizeRequest>, bytes: usize| {
        // Tag and length of the entry come on top.
        let bytes = bytes + 8;
        if used != 0 && used + bytes > bytes_max {
            parts.push(SynchronizeRequest::default());
            used = 0;
        }
        used += bytes;
        parts.len() - 1
    };
    for pod in state.pods {
        let at = room(&mut parts, pod.encoded_len());
        parts[at].pods.push(pod);
    }
    for container in state.containers {
        let at = room(&mut parts, container.encoded_len());
        parts[at].containers.push(container);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identities_are_checked() {
        assert_eq!(Identity::of_file("05-cpu-pinner").unwrap().to_string(), "05-cpu-pinner");
        for bad in ["5-a", "a0-b", "00", "00-", "00-a b", "00-é", "000-a", "-00-a", "00-a/b"] {
            assert!(Identity::of_file(bad).is_err(), "{bad:?}");
        }
        assert!(Identity::new("00", "b").unwrap() < Identity::new("01", "a").unwrap());
    }

    #[test]
    fn every_event_has_a_bit() {
        let bits = (1..Event::Last as i32).map(|number| bit(Event::try_from(number).unwrap()));
        assert_eq!(bits.fold(0, |mask, bit| mask | bit), ALL_EVENTS);
    }

    proptest! {
        #[test]
        fn parts_are_small_and_complete(sizes in proptest::collection::vec(0usize..300, 0..40), pods in 0usize..10) {
            let named = |size: &usize| "x".repeat(*size);
            let state = State {
                pods: sizes.iter().take(pods).map(|size| PodSandbox { id: named(size), ..Default::default() }).collect(),
                containers: sizes.iter().map(|size| Container { id: named(size), ..Default::default() }).collect(),
            };
            let parts = parts(state.clone(), 400);
            prop_assert!(parts.iter().all(|part| part.encoded_len() <= 400));
            let got = State {
                pods: parts.iter().flat_map(|part| part.pods.clone()).collect(),
                containers: parts.iter().flat_map(|part| part.containers.clone()).collect(),
            };
            prop_assert_eq!(got.pods, state.pods);
            prop_assert_eq!(got.containers, state.containers);
        }
    }
}
