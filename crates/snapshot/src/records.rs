#[derive(Debug, Default)]
pub(crate) struct Records { pub(crate) xattrs_dropped: u64 }
