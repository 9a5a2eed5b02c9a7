//! Who a container's process runs as: the request, the image's `USER`, and the `/etc/passwd` and `/etc/group` of the
//! image (content: bounded, parsed once, and never read as anything but a table of names and numbers).

use std::io;
use std::path::Path;

use crisp_sys::path::RootedDir;
use serde::{Deserialize, Serialize};

use crate::error::{SpecError, quote};

/// Bytes of `/etc/passwd` or `/etc/group` that are read; a longer file is refused (CVE-2026-47262, CVE-2025-4437).
pub const USER_FILE_BYTES_MAX: usize = 4 << 20;
/// Bytes of one line; a longer one is taken for malformed and skipped.
const LINE_BYTES_MAX: usize = 64 << 10;
/// Groups of one process, `NGROUPS_MAX` of the kernel.
const GROUPS_MAX: usize = 65_536;
/// Largest user or group id. The kernel's own are 32 bits wide; above this they read as negative somewhere
/// (CVE-2024-40635).
pub const ID_MAX: u32 = i32::MAX as u32;
/// Bytes of a user or group name.
const NAME_BYTES_MAX: usize = 256;
/// Bytes of a home directory, `PATH_MAX` of the kernel.
const HOME_BYTES_MAX: usize = 4095;

/// Where the image keeps its users.
pub const PASSWD: &str = "/etc/passwd";
/// Where the image keeps its groups.
pub const GROUP: &str = "/etc/group";

/// Who was asked for (policy, apart from [`UserChoice::Image`], whose text is the image's).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserRequest {
    /// The user.
    pub user: UserChoice,
    /// Overrides the primary group; needs a user in the request.
    pub group: Option<u32>,
    /// More groups.
    pub supplemental: Vec<u32>,
    /// Whether the image's groups count.
    pub policy: GroupPolicy,
}

/// Where the user comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UserChoice {
    /// The `USER` of the image configuration.
    #[default]
    Image,
    /// CRI's `run_as_user`.
    Uid(u32),
    /// CRI's `run_as_username`.
    Name(String),
}

/// Whether the groups that the image's `/etc/group` lists for the user are added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupPolicy {
    /// They are.
    #[default]
    Merge,
    /// Only the primary group and what the request lists.
    Strict,
}

/// Who the process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one first, each once.
    pub additional_gids: Vec<u32>,
    /// Absolute, free of control characters; `/` when the image names none.
    pub home: String,
}

impl ResolvedUser {
    /// Root with its own group and nothing else.
    #[must_use]
    pub fn root() -> Self {
        Self { uid: 0, gid: 0, additional_gids: vec![0], home: "/root".into() }
    }
}

/// A user or a group as written: digits alone are always a number, never a name (CVE-2016-3697, CVE-2026-46680).
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Named<'a> {
    fn parse(field: &'static str, text: &'a str) -> Result<Self, SpecError> {
        let bad = |reason| SpecError::field(field, text, reason);
        if text.is_empty() {
            return Err(bad("a user or group is missing"));
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            if text.len() > 1 && text.starts_with('0') {
                return Err(bad("a number does not begin with 0"));
            }
            let id = text.parse::<u32>().ok().filter(|id| *id <= ID_MAX);
            return id.map(Self::Id).ok_or_else(|| bad("the number is outside of 0 to 2147483647"));
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(bad("the name is too long"));
        }
        if text.starts_with(['+', '-'])
            || text.chars().any(|c| c.is_whitespace() || c.is_control() || c == ':')
        {
            return Err(bad("neither a number nor a name"));
        }
        Ok(Self::Name(text))
    }
}

/// Resolves a user against the files below a container's root.
///
/// # Errors
/// As [`resolve_with`].
pub fn resolve(root: &RootedDir, image_user: &str, request: &UserRequest) -> Result<ResolvedUser, SpecError> {
    let read = |path: &'static str, bytes_max: usize| match root.read_file(Path::new(path), bytes_max as u64)
    {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    };
    resolve_with(read, image_user, request)
}

/// Resolves a user against the image's files.
///
/// `read` gives the content of [`PASSWD`] or [`GROUP`] inside the container's root, at most the bytes of its second
/// argument plus one, of a regular file only, without following a link out of the root; `None` when there is no such file.
///
/// # Errors
/// [`SpecError::UnknownUser`], [`SpecError::UnknownGroup`], [`SpecError::Field`] for a `USER` that cannot be read,
/// [`SpecError::Combination`] for a group without a user, [`SpecError::UserFile`] when `read` fails or a file is longer
/// than [`USER_FILE_BYTES_MAX`].
pub fn resolve_with<R>(
    mut read: R,
    image_user: &str,
    request: &UserRequest,
) -> Result<ResolvedUser, SpecError>
where
    R: FnMut(&'static str, usize) -> io::Result<Option<Vec<u8>>>,
{
    if request.group.is_some() && request.user == UserChoice::Image {
        return Err(SpecError::Combination("run_as_group needs run_as_user or run_as_username"));
    }
    check_ids(request)?;
    let passwd = load(&mut read, PASSWD)?;
    let entry = find_user(&passwd, image_user, request)?;
    let group_file = load(&mut read, GROUP)?;
    let gid = primary_group(&entry, &group_file, image_user, request)?;
    let mut gids = vec![gid];
    if let (GroupPolicy::Merge, Some(name)) = (request.policy, &entry.name) {
        gids.extend(memberships(&group_file, name));
    }
    gids.extend(&request.supplemental);
    let mut seen = std::collections::HashSet::new();
    gids.retain(|gid| seen.insert(*gid));
    if gids.len() > GROUPS_MAX {
        return Err(SpecError::TooMany { what: "supplementary groups", max: GROUPS_MAX });
    }
    Ok(ResolvedUser { uid: entry.uid, gid, additional_gids: gids, home: entry.home })
}

fn check_ids(request: &UserRequest) -> Result<(), SpecError> {
    let uid = match request.user {
        UserChoice::Uid(uid) => Some(("run_as_user", uid)),
        _ => None,
    };
    let gid = request.group.map(|gid| ("run_as_group", gid));
    let more = request.supplemental.iter().map(|gid| ("supplemental_groups", *gid));
    match uid.into_iter().chain(gid).chain(more).find(|(_, id)| *id > ID_MAX) {
        Some((field, id)) => Err(SpecError::field(field, &id.to_string(), "outside of 0 to 2147483647")),
        None => Ok(()),
    }
}

/// A user of the image, or a number that the image does not name.
struct Entry {
    uid: u32,
    gid: Option<u32>,
    name: Option<String>,
    home: String,
}

impl Entry {
    fn nameless(uid: u32) -> Self {
        Self { uid, gid: None, name: None, home: "/".into() }
    }
}

fn find_user(passwd: &[u8], image_user: &str, request: &UserRequest) -> Result<Entry, SpecError> {
    match &request.user {
        UserChoice::Uid(uid) => Ok(by_uid(passwd, *uid)),
        UserChoice::Name(name) => match Named::parse("run_as_username", name)? {
            Named::Name(name) => by_name(passwd, name),
            Named::Id(_) => Err(SpecError::field("run_as_username", name, "a number is not a name")),
        },
        UserChoice::Image if image_user.is_empty() => Ok(by_uid(passwd, 0)),
        UserChoice::Image => {
            let user = image_user.split_once(':').map_or(image_user, |(user, _)| user);
            match Named::parse("USER of the image", user)? {
                Named::Id(uid) => Ok(by_uid(passwd, uid)),
                Named::Name(name) => by_name(passwd, name),
            }
        }
    }
}

fn primary_group(
    entry: &Entry,
    group: &[u8],
    image_user: &str,
    request: &UserRequest,
) -> Result<u32, SpecError> {
    if let Some(gid) = request.group {
        return Ok(gid);
    }
    let of_image = match request.user {
        UserChoice::Image => image_user.split_once(':').map(|(_, group)| group),
        _ => None,
    };
    let Some(text) = of_image else { return Ok(entry.gid.unwrap_or(0)) };
    match Named::parse("group in USER of the image", text)? {
        Named::Id(gid) => Ok(gid),
        Named::Name(name) => {
            let named = |fields: &[&str]| (fields.first() == Some(&name)).then(|| id(fields, 2)).flatten();
            entries(group)
                .find_map(|fields| named(&fields))
                .ok_or_else(|| SpecError::UnknownGroup(quote(name)))
        }
    }
}

fn load<R>(read: &mut R, path: &'static str) -> Result<Vec<u8>, SpecError>
where
    R: FnMut(&'static str, usize) -> io::Result<Option<Vec<u8>>>,
{
    let content = read(path, USER_FILE_BYTES_MAX).map_err(|source| SpecError::UserFile { path, source })?;
    let content = content.unwrap_or_default();
    if content.len() > USER_FILE_BYTES_MAX {
        let source =
            io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {USER_FILE_BYTES_MAX} bytes"));
        return Err(SpecError::UserFile { path, source });
    }
    Ok(content)
}

/// Lines of a colon-separated file; what is too long or no UTF-8 is skipped, as are comments.
fn entries(content: &[u8]) -> impl Iterator<Item = Vec<&str>> {
    content
        .split(|b| *b == b'\n')
        .filter(|line| line.len() <= LINE_BYTES_MAX)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .filter(|line| !line.trim_start().is_empty() && !line.starts_with('#'))
        .map(|line| line.split(':').collect())
}

fn id(fields: &[&str], at: usize) -> Option<u32> {
    let text = fields.get(at)?;
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id <= ID_MAX)
}

/// `name:password:uid:gid:comment:home:shell`.
fn passwd_entry(fields: &[&str]) -> Option<Entry> {
    let name = fields.first().filter(|name| !name.is_empty())?;
    Some(Entry {
        uid: id(fields, 2)?,
        gid: id(fields, 3),
        name: Some((*name).to_string()),
        home: home(fields.get(5).copied().unwrap_or_default()),
    })
}

/// A home directory goes into the process's environment: no byte of it may end a line there (CVE-2022-4318).
fn home(text: &str) -> String {
    let usable = text.starts_with('/') && text.len() <= HOME_BYTES_MAX && !text.chars().any(char::is_control);
    if usable { text.to_string() } else { "/".to_string() }
}

fn by_uid(passwd: &[u8], uid: u32) -> Entry {
    let found = entries(passwd).filter_map(|fields| passwd_entry(&fields)).find(|entry| entry.uid == uid);
    found.unwrap_or_else(|| Entry::nameless(uid))
}

fn by_name(passwd: &[u8], name: &str) -> Result<Entry, SpecError> {
    let named = |entry: &Entry| entry.name.as_deref() == Some(name);
    let found = entries(passwd).filter_map(|fields| passwd_entry(&fields)).find(named);
    found.ok_or_else(|| SpecError::UnknownUser(quote(name)))
}

/// `name:password:gid:member,member`: the groups that list the user.
fn memberships<'a>(group: &'a [u8], name: &'a str) -> impl Iterator<Item = u32> + 'a {
    entries(group).filter_map(move |fields| {
        let member = fields.get(3)?.split(',').any(|member| member.trim() == name);
        member.then(|| id(&fields, 2)).flatten()
    })
}

#[cfg(test)]
mod tests;
