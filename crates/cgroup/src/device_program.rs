/// Placeholder.
#[derive(Debug, Default)]
pub(crate) struct ProgramCache;
