use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::ImageError;

/// Longest reference, in bytes: a name of 255, a tag of 128, a digest and their separators fit.
pub const REFERENCE_BYTES_MAX: usize = 512;
const NAME_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// What a user wrote to name an image, normalised once.
///
/// `busybox` is `docker.io/library/busybox:latest`. A reference has a tag or a digest, never both: where both were given the
/// digest decides and the tag is dropped.
///
/// Source: CRI contract, "Reference grammar and normalisation"; the grammar is that of the OCI distribution specification.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    target: Target,
}

/// Which content of the repository is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// What the tag points to at the time.
    Tag(String),
    /// Exactly this.
    Digest(Digest),
}

impl ImageRef {
    /// What `text` may mean: itself, or one reference for each registry where it names none.
    ///
    /// # Errors
    /// [`ImageError::Reference`].
    pub fn candidates(text: &str, search: &[String]) -> Result<Vec<Self>, ImageError> {
        let qualified = text.split_once('/').is_some_and(|(first, _)| looks_like_host(first));
        if qualified {
            return Ok(vec![text.parse()?]);
        }
        search.iter().map(|registry| format!("{registry}/{text}").parse()).collect()
    }

    /// The registry's name as in the reference, `host[:port]`; `docker.io` for short names.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry, `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Registry and path, `docker.io/library/busybox`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// Tag or digest.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The same repository at a digest.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { target: Target::Digest(digest), ..self.clone() }
    }

    /// The part of a URL that names the target.
    pub(crate) fn target_text(&self) -> &str {
        match &self.target {
            Target::Tag(tag) => tag,
            Target::Digest(digest) => digest.as_str(),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let separator = match self.target {
            Target::Tag(_) => ':',
            Target::Digest(_) => '@',
        };
        write!(f, "{}/{}{separator}{}", self.registry, self.repository, self.target_text())
    }
}

impl FromStr for ImageRef {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        parse(text).map_err(|reason| ImageError::Reference {
            text: text.chars().take(REFERENCE_BYTES_MAX).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > REFERENCE_BYTES_MAX {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest =
                digest.parse::<Digest>().map_err(|_error| "what follows the @ is no sha256 digest")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("the tag is not valid");
    }
    let (registry, repository) = split_registry(name)?;
    let target = match digest {
        Some(digest) => Target::Digest(digest),
        None => Target::Tag(tag.unwrap_or(DEFAULT_TAG).into()),
    };
    Ok(ImageRef { registry, repository, target })
}

/// A colon after the last slash begins the tag; one before it begins a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rfind(':') {
        Some(colon) if !text[colon..].contains('/') => (&text[..colon], Some(&text[colon + 1..])),
        _ => (text, None),
    }
}

fn split_registry(name: &str) -> Result<(String, String), &'static str> {
    let (registry, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_host(registry) {
        return Err("the registry is not a host name with an optional port");
    }
    if !path.split('/').all(is_component) {
        return Err("the repository must be lower-case letters, digits and single separators");
    }
    if registry.len() + path.len() > NAME_BYTES_MAX {
        return Err("the name is too long");
    }
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    let namespace = if registry == DEFAULT_REGISTRY && !path.contains('/') { DEFAULT_NAMESPACE } else { "" };
    Ok((registry.into(), format!("{namespace}{path}")))
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost" || first.bytes().any(|b| matches!(b, b'.' | b':') || b.is_ascii_uppercase())
}

/// A DNS name or an address, IPv6 in brackets, with an optional port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|t| t.split_once(']')) {
        Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            ("ipv6", rest.strip_prefix(':').or((!rest.is_empty()).then_some("none")))
        }
        Some(_) => return false,
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        !l.is_empty() && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    host.split('.').all(label) && port.is_none_or(|p| digits(p) && p.parse::<u16>().is_ok())
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of dashes.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let outer = |b: Option<&u8>| b.is_some_and(|b| alphanumeric(*b));
    if !outer(text.as_bytes().first()) || !outer(text.as_bytes().last()) {
        return false;
    }
    text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= TAG_BYTES_MAX
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn names_are_normalised() {
        let at = format!("@sha256:{HEX}");
        for (text, normal) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            ("REG/app", "REG/app:latest".to_owned()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".to_owned()),
            ("[::1]:5000/app:v1", "[::1]:5000/app:v1".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            ("q.io/a__b/c-d.e/f--g", "q.io/a__b/c-d.e/f--g:latest".to_owned()),
            (&format!("busybox{at}"), format!("docker.io/library/busybox{at}")),
            (&format!("q.io/a:tag{at}"), format!("q.io/a{at}")),
        ] {
            let parsed: ImageRef = text.parse().unwrap();
            assert_eq!(parsed.to_string(), normal, "{text}");
            assert_eq!(normal.parse::<ImageRef>().unwrap(), parsed, "printing and parsing agree");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("q.io/{}", "a/".repeat(200));
        for text in [
            "",
            ":",
            "@",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a b",
            "a:",
            "a:-x",
            "a:b/c:",
            "q.io/A",
            "q.io/../a",
            "q.io/a..b",
            "q.io/a___b",
            "q.io/.a",
            "q.io/a-",
            "q.io:x/a",
            "q.io:99999/a",
            "-q.io/a",
            "q..io/a",
            "a@sha256:zz",
            "a@sha512:00",
            "a@b@c",
            "[::1/a",
            "[zz]:1/a",
            "[::1]x/a",
            "http://q.io/a",
            "q.io/a?b",
            "q.io/a:b%2f",
            "q.io/a\n",
            &long,
        ] {
            assert!(text.parse::<ImageRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_tells_what_was_wrong() {
        let error = "a:-x".parse::<ImageRef>().unwrap_err();
        assert_eq!(error.to_string(), r#"image reference "a:-x": the tag is not valid"#);
    }

    #[test]
    fn a_short_name_may_be_at_any_registry_that_is_searched() {
        let search = ["quay.io".to_owned(), "docker.io".to_owned()];
        let names = |text: &str| -> Vec<String> {
            ImageRef::candidates(text, &search).unwrap().iter().map(ToString::to_string).collect()
        };
        assert_eq!(names("app"), ["quay.io/app:latest", "docker.io/library/app:latest"]);
        assert_eq!(names("team/app:1"), ["quay.io/team/app:1", "docker.io/team/app:1"]);
        assert_eq!(names("localhost/app"), ["localhost/app:latest"]);
        assert!(ImageRef::candidates("UPPER", &search).is_err());
    }
}
