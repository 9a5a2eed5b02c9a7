//! Written next.
/// x
pub fn smoke() -> anyhow::Result<bool> { Ok(true) }
