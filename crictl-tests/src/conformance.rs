//! Written next.
/// x
pub fn run(_: Option<&str>, _: bool) -> anyhow::Result<bool> { Ok(true) }
