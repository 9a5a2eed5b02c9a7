//! Signal names and numbers, as image configurations and CRI write them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{SpecError, quote};

/// Names by kernel number, beginning with 1, without `SIG` (`include/uapi/asm-generic/signal.h`; the numbers of
/// x86, arm and most other machines).
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const ALIASES: [(&str, u8); 4] = [("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// Real-time signals as a C program sees them: the C library keeps 32 and 33 for itself.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal by its kernel number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

impl Signal {
    /// What stops a container when nothing else is said.
    pub const TERM: Self = Self(15);
    /// What no process survives.
    pub const KILL: Self = Self(9);

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }

    /// Parses `TERM`, `SIGTERM`, `15`, `SIGRTMIN+3`, `RTMAX-1`, in any case.
    ///
    /// # Errors
    /// [`SpecError::UnknownSignal`] for anything else.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let unknown = || SpecError::UnknownSignal(quote(text));
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text
                .parse::<u8>()
                .ok()
                .and_then(|number| Self::try_from(number).ok())
                .ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        by_name(name).map(Self).ok_or_else(unknown)
    }
}

fn by_name(name: &str) -> Option<u8> {
    let plain = NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number);
    let alias = || ALIASES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    plain.or_else(alias).or_else(|| real_time(name))
}

fn real_time(name: &str) -> Option<u8> {
    let (base, rest, up) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => (RTMIN, rest, true),
        (_, Some(rest)) => (RTMAX, rest, false),
        _ => return None,
    };
    if rest.is_empty() {
        return Some(base);
    }
    let digits = rest.strip_prefix(if up { '+' } else { '-' })?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let offset: u8 = digits.parse().ok()?;
    let number = if up { base.checked_add(offset)? } else { base.checked_sub(offset)? };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

impl TryFrom<u8> for Signal {
    type Error = SpecError;
    fn try_from(number: u8) -> Result<Self, SpecError> {
        if (1..=RTMAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(SpecError::UnknownSignal(number.to_string()))
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None if self.0 >= RTMIN => write!(f, "SIGRTMIN+{}", self.0 - RTMIN),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What stops the container: the request's, else the image's, else SIGTERM.
///
/// # Errors
/// [`SpecError::UnknownSignal`] when the image's text is none.
pub fn stop_signal(request: Option<Signal>, image: &str) -> Result<Signal, SpecError> {
    match request {
        Some(signal) => Ok(signal),
        None if image.is_empty() => Ok(Signal::TERM),
        None => Signal::parse(image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_parsed() {
        let cases = [
            ("SIGTERM", 15),
            ("term", 15),
            ("15", 15),
            ("SIGKILL", 9),
            ("sigusr1", 10),
            ("SIGCLD", 17),
            ("SIGPOLL", 29),
            ("SIGRTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("RTMAX-14", 50),
            ("SIGRTMAX", 64),
            ("64", 64),
        ];
        for (text, number) in cases {
            let signal = Signal::parse(text).unwrap();
            assert_eq!(signal.number(), number, "{text}");
            assert_eq!(Signal::parse(&signal.to_string()).unwrap(), signal, "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        let cases = [
            "",
            "SIG",
            "0",
            "65",
            "-1",
            "+15",
            "1000",
            "SIGFOO",
            "SIGRTMIN+31",
            "SIGRTMIN-1",
            "SIGRTMAX+1",
            "SIGRTMIN++3",
            "RTMIN+",
            " TERM",
        ];
        for text in cases {
            assert!(Signal::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let usr1 = Signal::parse("USR1").unwrap();
        assert_eq!(stop_signal(Some(usr1), "SIGQUIT").unwrap(), usr1);
        assert_eq!(stop_signal(None, "SIGQUIT").unwrap().number(), 3);
        assert_eq!(stop_signal(None, "").unwrap(), Signal::TERM);
        assert!(stop_signal(None, "NONSENSE").is_err());
    }
}
