//! The wire types: CRI v1 (`cri`) and the daemon's own service (`admin`), both behind the feature `cri`, and the messages
//! between daemon and shim ([`supervisor`]). The code under `gen/` is written by `cargo xtask codegen` and committed.
#![forbid(unsafe_code)]

/// CRI v1, package `runtime.v1`, from `proto/cri/api.proto`.
#[cfg(feature = "cri")]
#[allow(missing_docs, unreachable_pub, elided_lifetimes_in_paths, deprecated, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod cri {
    include!("gen/runtime.v1.rs");
}

/// What Crisp's command line asks of the daemon beyond the CRI, from `proto/crisp/admin.proto`.
#[cfg(feature = "cri")]
#[allow(missing_docs, unreachable_pub, elided_lifetimes_in_paths, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod admin {
    include!("gen/crisp.v1.rs");
}

/// The protocol between daemon and shim, from `proto/shim/supervisor.proto`.
#[allow(missing_docs, unreachable_pub, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod supervisor {
    include!("gen/crisp.supervisor.v1.rs");
}

/// Bytes in a JSON record: text where they are UTF-8, else an array of numbers, so that nothing is lost.
#[cfg(feature = "cri")]
mod text_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => text.serialize(to),
            Err(_) => bytes.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        Either::deserialize(from).map(|value| match value {
            Either::Text(text) => text.into_bytes(),
            Either::Bytes(bytes) => bytes,
        })
    }
}
