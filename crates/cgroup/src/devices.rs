/// Which nodes a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Block and character devices.
    All,
    /// Character devices.
    Char,
    /// Block devices.
    Block,
}

/// What is done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "three independent permission bits, as in rwm")]
pub struct DeviceAccess {
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// Make a node.
    pub mknod: bool,
}

/// One rule for devices, as in the OCI runtime specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// Allow or deny.
    pub allow: bool,
    /// Kind of nodes.
    pub kind: DeviceKind,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Access that is allowed or denied.
    pub access: DeviceAccess,
}
