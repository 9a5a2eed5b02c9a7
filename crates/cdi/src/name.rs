//! Names of devices.

use std::fmt;
use std::str::FromStr;

use crate::error::CdiError;

/// Bytes of a qualified name.
const NAME_BYTES_MAX: usize = 512;

/// A qualified name, `vendor/class=name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceName {
    /// `vendor/class`.
    pub(crate) kind: String,
    pub(crate) device: String,
}

impl DeviceName {
    pub(crate) fn new(kind: &str, device: &str) -> Self {
        Self { kind: kind.to_owned(), device: device.to_owned() }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl FromStr for DeviceName {
    type Err = CdiError;

    fn from_str(text: &str) -> Result<Self, CdiError> {
        let failed = |problem| CdiError::Name { name: text.chars().take(NAME_BYTES_MAX).collect(), problem };
        if text.len() > NAME_BYTES_MAX {
            return Err(failed("the name is too long"));
        }
        let (kind, device) = text.split_once('=').ok_or_else(|| failed("not vendor/class=name"))?;
        check_kind(kind).map_err(failed)?;
        check_device(device).map_err(failed)?;
        Ok(Self::new(kind, device))
    }
}

/// `vendor/class`: both begin with a letter, end with a letter or digit, and have letters, digits, `_`, `-` and (the vendor) `.` between.
pub(crate) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("no vendor/class")?;
    let part = |part: &str, more: &[char]| {
        part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(&c))
    };
    match (part(vendor, &['_', '-', '.']), part(class, &['_', '-', '.'])) {
        (true, true) => Ok(()),
        (false, _) => Err("the vendor is not a name"),
        (true, false) => Err("the class is not a name"),
    }
}

/// Begins and ends with a letter or digit, `_`, `-`, `.` and `:` may be between.
pub(crate) fn check_device(device: &str) -> Result<(), &'static str> {
    let fine = device.starts_with(|c: char| c.is_ascii_alphanumeric())
        && device.ends_with(|c: char| c.is_ascii_alphanumeric())
        && device.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':'));
    if fine { Ok(()) } else { Err("the device is not a name") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_checked() {
        for good in ["nvidia.com/gpu=0", "v/c=all", "intel.com/sriov-nic=0000:3b:02.1", "a_b-c.d/e=F"] {
            assert_eq!(good.parse::<DeviceName>().unwrap().to_string(), good);
        }
        let bad = [
            "", "gpu", "v=c", "v/c", "v/c=", "v/c=-a", "1v/c=a", "v/=a", "/c=a", "v./c=a", "v/c=a b",
            "v/c/d=e", "v/c=é",
        ];
        for bad in bad {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad:?}");
        }
        assert!(format!("v/c={}", "x".repeat(600)).parse::<DeviceName>().is_err());
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in ".{0,40}") {
            if let Ok(name) = text.parse::<DeviceName>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
