use std::fmt;

use serde::Deserialize;

/// An operating system and a processor, as image indexes name them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[serde(default)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`, …: Go's names.
    pub architecture: String,
    /// `v8`, `v3`, …; empty when it does not matter.
    #[serde(deserialize_with = "null_is_empty")]
    pub variant: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(d: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(d).map(Option::unwrap_or_default)
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", amd64_level()),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `offered` runs here: the greater the better, `None` for not at all.
    pub(crate) fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os {
            return None;
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u32>().ok());
        let default = |architecture: &str| match architecture {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        // A 64-bit ARM processor runs 32-bit programs, which are worse than any native one.
        let arm_on_arm64 = self.architecture == "arm64" && offered.architecture == "arm";
        if self.architecture != offered.architecture && !arm_on_arm64 {
            return None;
        }
        if !offered.variant.is_empty() && level(&offered.variant).is_none() {
            return (offered.variant == self.variant).then_some(1);
        }
        let ours = level(&self.variant).unwrap_or(default(&self.architecture));
        let theirs = level(&offered.variant).unwrap_or(default(&offered.architecture));
        (theirs <= ours).then_some(if arm_on_arm64 { theirs } else { 100 + theirs })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

/// The micro-architecture level of the x86-64 psABI.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    let v2 = is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt");
    let v3 = v2
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("movbe");
    let v4 = v3 && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl");
    match (v2, v3, v4) {
        (_, _, true) => "v4",
        (_, true, _) => "v3",
        (true, _, _) => "v2",
        (false, false, false) => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(String::from);
        let mut next = || parts.next().unwrap_or_default();
        Platform { os: next(), architecture: next(), variant: next() }
    }

    #[test]
    fn the_best_that_runs_is_chosen() {
        for (host, offers, best) in [
            ("linux/amd64/v3", &["linux/arm64", "linux/amd64"][..], Some("linux/amd64")),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some("linux/amd64/v2")),
            ("linux/amd64/v1", &["linux/amd64/v2"], None),
            ("linux/amd64/v4", &["windows/amd64", "unknown/unknown"], None),
            ("linux/arm64/v8", &["linux/arm/v7", "linux/arm64/v8"], Some("linux/arm64/v8")),
            ("linux/arm64/v8", &["linux/arm/v6", "linux/arm/v7", "linux/amd64"], Some("linux/arm/v7")),
            ("linux/arm64/v8", &["linux/arm64"], Some("linux/arm64")),
            ("linux/arm/v7", &["linux/arm64", "linux/arm/v6", "linux/arm/v5"], Some("linux/arm/v6")),
            ("linux/riscv64", &["linux/riscv64"], Some("linux/riscv64")),
            ("linux/amd64/v3", &[], None),
        ] {
            let host = platform(host);
            let found = offers.iter().filter(|o| host.rank(&platform(o)).is_some());
            let found = found.max_by_key(|o| host.rank(&platform(o))).copied();
            assert_eq!(found, best, "{host}: {offers:?}");
        }
    }
}
