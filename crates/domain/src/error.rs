/// What a caller can do about an error; each crate's error enum maps to one with its `kind()`.
///
/// The daemon maps a kind to a gRPC code in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The thing that was named does not exist.
    NotFound,
    /// The request itself is wrong; the same request will never work.
    Invalid,
    /// The name is taken by a live object.
    Exists,
    /// The object is in a state that does not allow this.
    WrongState,
    /// A named limit was reached.
    Exhausted,
    /// Not now: recovery runs, a registry is away, the network has no configuration yet.
    NotReady,
    /// It took longer than it may.
    Timeout,
    /// Not offered here.
    Unsupported,
    /// The kernel refused, a record is corrupt, an invariant broke.
    Internal,
}

/// An error and its sources as one line. A source that the text before it repeats is left out.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{says}")]
    struct Told {
        says: &'static str,
        source: Option<Box<Told>>,
    }

    #[test]
    fn causes_are_told_once() {
        let told = |says, source: Option<Told>| Told { says, source: source.map(Box::new) };
        let cause = || told("no such file", None);
        assert_eq!(chain(&cause()), "no such file");
        let repeated = told("read /a: no such file", Some(cause()));
        assert_eq!(chain(&told("start", Some(repeated))), "start: read /a: no such file");
    }
}
