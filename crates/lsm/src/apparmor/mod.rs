//! AppArmor: which profile a container gets, and a default profile of our own.
//!
//! | request | AppArmor on | AppArmor off |
//! |---|---|---|
//! | nothing | the default profile; none for a privileged container | none |
//! | `RuntimeDefault` | the default profile or an error; none for a privileged container | error |
//! | `Unconfined` | none | none |
//! | `Localhost` | that profile, which must be loaded; for a privileged container too | error |
//!
//! The default profile is loaded by the first who needs it, others wait for that. While it cannot be loaded (no `apparmor_parser`
//! on this machine), containers that ask for nothing run without a profile, which is said once; those that ask for it are refused
//! with the reason. A profile that the operator named is an error for both while it is not loaded.

mod parser;
mod template;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crisp_spec::{AppArmorRequest, Privilege};

use crate::error::quote;
use crate::{LsmError, Result, read};

/// Name of the runtime's own profile. It stays, since tools and other profiles name it.
pub const DEFAULT_PROFILE: &str = "crisp-default";
/// `Y` where AppArmor is on.
const SWITCH: &str = "/sys/module/apparmor/parameters/enabled";
/// The kernel's list: `name (mode)` lines.
const LIST: &str = "/sys/kernel/security/apparmor/profiles";
/// Bytes of the list; ten thousand long names.
const LIST_BYTES_MAX: u64 = 4 << 20;
/// Bytes of a file with one word or one name in it.
const WORD_BYTES_MAX: u64 = 4096;
/// How long a parser that hung is not tried again. Each try holds a thread up, and all who need the profile.
const HUNG_FOR: Duration = Duration::from_secs(120);
/// AppArmor's own directory, with what its parser knows.
const CONFIG: &str = "/etc/apparmor.d";

/// Which profile is the default one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Default {
    /// Our own, which we load.
    Own,
    /// One that the operator loads, by name.
    Named(String),
    /// None.
    Off,
}

/// What this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No AppArmor in the kernel, or turned off.
    Absent,
    /// On, but nobody could load the default profile: no parser.
    WithoutParser,
    /// On.
    Present {
        /// The program that loads profiles.
        parser: PathBuf,
    },
}

/// Whether AppArmor is on, and the program that loads profiles is there.
#[must_use]
pub fn state() -> State {
    Places::default().state()
}

/// Where things lie; tests have them elsewhere.
#[derive(Debug, Clone)]
struct Places {
    switch: PathBuf,
    list: PathBuf,
    config: PathBuf,
    parser_dirs: Vec<PathBuf>,
}

impl std::default::Default for Places {
    fn default() -> Self {
        Self {
            switch: SWITCH.into(),
            list: LIST.into(),
            config: CONFIG.into(),
            parser_dirs: parser::DIRS.map(PathBuf::from).to_vec(),
        }
    }
}

impl Places {
    fn enabled(&self) -> bool {
        read::text(&self.switch, WORD_BYTES_MAX).is_ok_and(|text| text.trim() == "Y")
    }

    fn state(&self) -> State {
        match (self.enabled(), parser::find(&self.parser_dirs)) {
            (false, _) => State::Absent,
            (true, None) => State::WithoutParser,
            (true, Some(parser)) => State::Present { parser },
        }
    }

    fn loaded(&self) -> Result<BTreeSet<String>> {
        let text = read::text(&self.list, LIST_BYTES_MAX);
        text.map(|text| names(&text)).map_err(|source| LsmError::Read { path: self.list.clone(), source })
    }
}

/// Names in the kernel's list; they may hold spaces.
fn names(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|line| line.rsplit_once(" (")).map(|(name, _)| name.to_owned()).collect()
}

/// What a request means, before anything is known of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted<'a> {
    Nothing,
    Default(Asked),
    Named(&'a str),
}

/// Whether somebody asked for the default profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Expressly,
    Silently,
}

fn wanted(request: &AppArmorRequest, privilege: Privilege) -> Wanted<'_> {
    match (request, privilege) {
        (AppArmorRequest::Localhost(name), _) => Wanted::Named(name),
        // A privileged container is confined by what it names itself, and by nothing else.
        (AppArmorRequest::Unconfined, _) | (_, Privilege::Privileged) => Wanted::Nothing,
        (AppArmorRequest::Unset, Privilege::Ordinary) => Wanted::Default(Asked::Silently),
        (AppArmorRequest::RuntimeDefault, Privilege::Ordinary) => Wanted::Default(Asked::Expressly),
    }
}

/// AppArmor, as containers use it.
#[derive(Debug)]
pub struct AppArmor {
    default: Default,
    places: Places,
    enabled: bool,
    /// Holds the text that was given to the kernel, for the next start of the daemon.
    stamp: PathBuf,
    /// Taken while the profile is loaded, so that it is loaded once. When the parser hung last: the next ones do not wait for it, too.
    loading: Mutex<Option<Instant>>,
    warned: AtomicBool,
}

impl AppArmor {
    /// Looks whether AppArmor is on; nothing is loaded yet. `dir`: a directory that ends with a reboot, as the kernel's profiles do.
    #[must_use]
    pub fn open(default: Default, dir: &Path) -> Self {
        Self::at(default, dir, Places::default())
    }

    fn at(default: Default, dir: &Path, places: Places) -> Self {
        Self {
            default,
            enabled: places.enabled(),
            places,
            stamp: dir.join(DEFAULT_PROFILE),
            loading: Mutex::default(),
            warned: AtomicBool::new(false),
        }
    }

    /// Loads the default profile ahead of the first container, also to replace that of an earlier version. Blocks for as long as the
    /// parser takes, some hundred milliseconds.
    pub fn warm_up(&self) {
        if self.enabled && self.default == Default::Own && self.load().is_ok() {
            tracing::debug!(profile = DEFAULT_PROFILE, "the default AppArmor profile is loaded");
        }
    }

    /// The profile for the specification of a container; `None` for none. May wait for the default profile to be loaded.
    ///
    /// # Errors
    /// [`LsmError::NoAppArmor`], [`LsmError::NotLoaded`], [`LsmError::DefaultOff`], [`LsmError::Load`], [`LsmError::Read`].
    pub fn profile(&self, request: &AppArmorRequest, privilege: Privilege) -> Result<Option<String>> {
        match (wanted(request, privilege), self.enabled) {
            (Wanted::Nothing, _) | (Wanted::Default(Asked::Silently), false) => Ok(None),
            (Wanted::Default(Asked::Expressly), false) => {
                Err(LsmError::NoAppArmor { profile: self.default_name().to_owned() })
            }
            (Wanted::Named(name), false) => Err(LsmError::NoAppArmor { profile: quote(name) }),
            (Wanted::Named(name), true) => self.named(name).map(Some),
            (Wanted::Default(asked), true) => self.default_profile(asked),
        }
    }

    fn default_name(&self) -> &str {
        match &self.default {
            Default::Named(name) => name,
            Default::Own | Default::Off => DEFAULT_PROFILE,
        }
    }

    fn named(&self, name: &str) -> Result<String> {
        match self.places.loaded()?.contains(name) {
            true => Ok(name.to_owned()),
            false => Err(LsmError::NotLoaded { profile: quote(name) }),
        }
    }

    fn default_profile(&self, asked: Asked) -> Result<Option<String>> {
        match (&self.default, asked) {
            (Default::Off, Asked::Silently) => Ok(None),
            (Default::Off, Asked::Expressly) => Err(LsmError::DefaultOff),
            (Default::Named(name), _) => self.named(name).map(Some),
            (Default::Own, Asked::Expressly) => self.load().map(Some),
            (Default::Own, Asked::Silently) => Ok(self.load().map_err(|error| self.warn(&error)).ok()),
        }
    }

    fn warn(&self, error: &LsmError) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            let error: &dyn std::error::Error = error;
            tracing::warn!(error, "containers that ask for no AppArmor profile run without one");
        }
    }

    /// Makes sure that the kernel has our profile as this version wants it; others wait meanwhile.
    fn load(&self) -> Result<String> {
        let mut hung = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let text = template::text(&template::Machine::look(&self.places.config));
        // Looked at every time: an administrator may unload what is not in a file of the machine's own.
        let current = read::text(&self.stamp, WORD_BYTES_MAX * 4).is_ok_and(|loaded| loaded == text);
        if !(current && self.places.loaded()?.contains(DEFAULT_PROFILE)) {
            if hung.is_some_and(|at| at.elapsed() < HUNG_FOR) {
                let reason = format!("apparmor_parser hung less than {} s ago", HUNG_FOR.as_secs());
                return Err(LsmError::Load { profile: DEFAULT_PROFILE, reason });
            }
            let begun = Instant::now();
            let loaded = parser::load(&self.places.parser_dirs, &text);
            *hung = (begun.elapsed() >= parser::TIME_MAX).then(Instant::now);
            loaded?;
            if !self.places.loaded()?.contains(DEFAULT_PROFILE) {
                let reason = "apparmor_parser was content, but the kernel does not list it".to_owned();
                return Err(LsmError::Load { profile: DEFAULT_PROFILE, reason });
            }
            self.remember(&text);
            tracing::info!(profile = DEFAULT_PROFILE, "AppArmor profile loaded");
        }
        Ok(DEFAULT_PROFILE.to_owned())
    }

    /// Without the stamp the next start loads the profile again, which does no harm.
    fn remember(&self, text: &str) {
        if let Err(error) = std::fs::write(&self.stamp, text) {
            tracing::warn!(%error, path = %self.stamp.display(), "note the AppArmor profile that was loaded");
        }
    }
}

#[cfg(test)]
mod tests;
