/// What is done with block and character devices in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceNodes {
    /// They are made as nodes, as other runtimes do: the container's device rules decide who may open them.
    Keep,
    /// A layer with one is refused.
    Refuse,
}

/// Bounds of one layer. Going over one is an error that names the bound and the entry.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries, and directories made because an entry lies in them.
    pub entries_max: u64,
    /// Bytes of the whole uncompressed stream.
    pub stream_bytes_max: u64,
    /// Apparent size of one file, holes included.
    pub file_bytes_max: u64,
    /// Bytes of one path or link target, at most 4095.
    pub path_bytes_max: usize,
    /// Components of one path.
    pub depth_max: usize,
    /// Bytes of one extension header (PAX, GNU long name).
    pub extension_bytes_max: usize,
    /// Bytes of names and values of the extended attributes of one entry.
    pub xattr_bytes_max: usize,
    /// Pieces of one sparse file.
    pub sparse_pieces_max: usize,
    /// Bytes of what must be remembered until the layer is committed: paths of directories, whiteouts, links to layers below.
    pub remembered_bytes_max: usize,
    /// The same of all layers of the store together that are unpacked and wait for their commit: an image has hundreds of layers, and
    /// all but the lowest may wait for that one.
    pub waiting_bytes_max: usize,
    /// Size of the compressed blob in bytes, if there was one: the stream may not be longer than `ratio_max` times it, or
    /// [`Limits::RATIO_FREE_BYTES`] if that is more.
    pub compressed_bytes: Option<u64>,
    /// Most bytes of stream for one compressed byte.
    pub ratio_max: u64,
    /// Whether device nodes are made.
    pub device_nodes: DeviceNodes,
}

impl Limits {
    /// Streams up to this many bytes may have any ratio.
    pub const RATIO_FREE_BYTES: u64 = 256 << 20;

    pub(crate) fn stream_bytes(&self) -> u64 {
        let by_ratio = self
            .compressed_bytes
            .map_or(u64::MAX, |bytes| bytes.saturating_mul(self.ratio_max).max(Self::RATIO_FREE_BYTES));
        by_ratio.min(self.stream_bytes_max)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries_max: 2_000_000,
            stream_bytes_max: 256 << 30,
            file_bytes_max: 128 << 30,
            path_bytes_max: 4095,
            depth_max: 200,
            extension_bytes_max: 1 << 20,
            xattr_bytes_max: 128 << 10,
            sparse_pieces_max: 1 << 18,
            remembered_bytes_max: 128 << 20,
            waiting_bytes_max: 256 << 20,
            compressed_bytes: None,
            // Deflate cannot exceed 1032; zstd can, by far.
            ratio_max: 1100,
            device_nodes: DeviceNodes::Keep,
        }
    }
}
