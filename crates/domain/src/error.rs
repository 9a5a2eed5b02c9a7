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
