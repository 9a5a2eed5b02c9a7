//! Requests that wait for their clients, each under a token that opens it once.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::StreamingError;

/// A token not used by then is void.
pub(crate) const TOKEN_LIFETIME: Duration = Duration::from_secs(60);
/// Requests that may wait at a time.
pub(crate) const TOKENS_MAX: usize = 1000;
/// Random bits of a token, in bytes: nobody guesses one within its lifetime.
const TOKEN_BYTES: usize = 16;

/// Waiting requests by token.
#[derive(Debug)]
pub(crate) struct Tokens<T> {
    waiting: HashMap<String, (Instant, T)>,
}

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new() }
    }
}

impl<T> Tokens<T> {
    /// Keeps `request`, and gives the token that opens it.
    pub(crate) fn insert(&mut self, request: T, now: Instant) -> Result<String, StreamingError> {
        self.waiting.retain(|_, (expires, _)| *expires > now);
        if self.waiting.len() >= TOKENS_MAX {
            return Err(StreamingError::Exhausted { outstanding: self.waiting.len() });
        }
        let token = draw()?;
        self.waiting.insert(token.clone(), (now + TOKEN_LIFETIME, request));
        Ok(token)
    }

    /// Opens `token` where `fits` its request; whatever else is asked for, it stays.
    pub(crate) fn take(&mut self, token: &str, now: Instant, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let (expires, request) = self.waiting.get(token)?;
        if *expires <= now || !fits(request) {
            return None;
        }
        self.waiting.remove(token).map(|(_, request)| request)
    }
}

fn draw() -> Result<String, StreamingError> {
    let mut bytes = [0; TOKEN_BYTES];
    getrandom::fill(&mut bytes).map_err(StreamingError::Random)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_once_and_in_time_and_only_what_fits() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.insert("exec", now).unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(tokens.take(&token, now, |_| false), None);
        assert_eq!(tokens.take("0", now, |_| true), None);
        assert_eq!(tokens.take(&token, now, |_| true), Some("exec"));
        assert_eq!(tokens.take(&token, now, |_| true), None);
        let late = tokens.insert("late", now).unwrap();
        assert_eq!(tokens.take(&late, now + TOKEN_LIFETIME, |_| true), None);
    }

    #[test]
    fn only_so_many_wait_and_expired_ones_make_room() {
        let (mut tokens, now) = (Tokens::default(), Instant::now());
        for n in 0..TOKENS_MAX {
            tokens.insert(n, now).unwrap();
        }
        let refused = tokens.insert(0, now).unwrap_err();
        assert_eq!(refused.kind(), crisp_domain::ErrorKind::Exhausted);
        tokens.insert(0, now + TOKEN_LIFETIME).unwrap();
    }
}
