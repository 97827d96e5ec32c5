//! Who gets in: the owners and groups of single channels, beside those of the directory.
//!
//! The directory, the map and the lock file belong to who made them, with mode 0750 and 0660. A channel whose
//! `Owner` or `Group` is another one has rings of that owner and group; access lists (ACLs) let these enter the
//! directory without listing it, read the map, take roles, and tell the relay of news. Nobody else gets more than before, and entries that an
//! administrator made by hand stay. When its last channel goes, so does a user's or group's entry.

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::gcim::Gcim;
use crate::ring_file::Uuid;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const ATTRIBUTE: &std::ffi::CStr = c"system.posix_acl_access";
/// Of the attribute: <linux/posix_acl_xattr.h>. A header, then 8 bytes an entry, in ascending order of tag and id.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NO_ID: u32 = u32::MAX;

/// Users and groups that have rings of their own, as tag and number.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Grants(BTreeSet<(u16, u32)>);

impl Grants {
    /// Who has one of these rings and is not the directory's owner or group. Rings that are gone have nobody.
    pub fn of(directory: &Directory, rings: impl IntoIterator<Item = Uuid>) -> Result<Grants> {
        let ours = inspect(directory.path())?;
        let mut grants = BTreeSet::new();
        for uuid in rings {
            let ring = match inspect(&directory.ring_path(uuid)) {
                Err(Error::NotFound { .. }) => continue,
                other => other?,
            };
            if ring.uid() != ours.uid() && ring.uid() != 0 {
                grants.insert((USER, ring.uid()));
            }
            if ring.gid() != ours.gid() && ring.mode() & 0o060 != 0 {
                grants.insert((GROUP, ring.gid()));
            }
        }
        Ok(Grants(grants))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn without(self, others: &Grants) -> Grants {
        Grants(&self.0 - &others.0)
    }

    /// Lets them in.
    pub fn allow(&self, directory: &Directory) -> Result<()> {
        self.change(directory, |acl, who, permissions| {
            acl.insert(who, permissions);
        })
    }

    /// Keeps them out again.
    pub fn revoke(&self, directory: &Directory) -> Result<()> {
        self.change(directory, |acl, who, _| {
            acl.remove(&who);
        })
    }

    fn change(
        &self,
        directory: &Directory,
        change: impl Fn(&mut Acl, (u16, u32), u16),
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        const ENTER: u16 = 1;
        const READ: u16 = 4;
        const LOCK: u16 = 6; // a lock for writing needs a descriptor for writing
        let file = |name| directory.path().join(name);
        for (path, permissions) in [
            (directory.path().to_path_buf(), ENTER),
            (Gcim::path(directory), READ),
            (file("grm"), READ),
            (file("locks"), LOCK),
            (file("news"), LOCK),
            (file("doorbell"), LOCK),
        ] {
            let old = match read(&path) {
                Err(Error::NotFound { .. }) => continue, // what only relays need
                other => other?,
            };
            let mut new = old.clone();
            for who in &self.0 {
                change(&mut new, *who, permissions);
            }
            set_mask(&mut new);
            if new != old {
                write(&path, &new)?;
            }
        }
        Ok(())
    }
}

/// Lets those who may take roles write another file as well.
pub(crate) fn share_like_locks(directory: &Directory, path: &Path) -> Result<()> {
    let wanted = read(&directory.path().join("locks"))?;
    match wanted == read(path)? {
        true => Ok(()),
        false => write(path, &wanted),
    }
}

/// Permissions by tag and id.
type Acl = BTreeMap<(u16, u32), u16>;

fn inspect(path: &Path) -> Result<std::fs::Metadata> {
    std::fs::symlink_metadata(path).map_err(|e| Error::system("inspect", path, e))
}

/// What the named ones and the group may have at the most: all that any of them has. Not there without named ones.
fn set_mask(acl: &mut Acl) {
    let is_limited = |tag: u16| tag == USER || tag == GROUP || tag == GROUP_OBJ;
    let limited = || acl.iter().filter(|((tag, _), _)| is_limited(*tag));
    let (count, all) = (
        limited().count(),
        limited().fold(0, |all, (_, permissions)| all | permissions),
    );
    match count {
        0 | 1 => acl.remove(&(MASK, NO_ID)),
        _ => acl.insert((MASK, NO_ID), all),
    };
}

/// The access list of a file; what its mode says if it has none.
fn read(path: &Path) -> Result<Acl> {
    let name = c_path(path)?;
    let mut bytes = vec![0; 1 << 16]; // the longest that an attribute can be
    // SAFETY: both names end in a zero byte, the buffer is valid for writing.
    let length = unsafe {
        libc::getxattr(
            name.as_ptr(),
            ATTRIBUTE.as_ptr(),
            bytes.as_mut_ptr().cast(),
            bytes.len(),
        )
    };
    let Ok(length) = usize::try_from(length) else {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP) => {
                let mode = inspect(path)?.mode();
                let of = |shift: u32| (mode >> shift & 7) as u16;
                Ok(Acl::from([
                    ((USER_OBJ, NO_ID), of(6)),
                    ((GROUP_OBJ, NO_ID), of(3)),
                    ((OTHER, NO_ID), of(0)),
                ]))
            }
            _ => Err(Error::system("read the access list of", path, error)),
        };
    };
    let entries = bytes[..length].get(4..).unwrap_or_default().chunks_exact(8);
    let entry = |e: &[u8]| {
        let half = |at: usize| u16::from_le_bytes([e[at], e[at + 1]]);
        (
            (half(0), u32::from_le_bytes([e[4], e[5], e[6], e[7]])),
            half(2),
        )
    };
    Ok(entries.map(entry).collect())
}

fn write(path: &Path, acl: &Acl) -> Result<()> {
    let name = c_path(path)?;
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for ((tag, id), permissions) in acl {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    // SAFETY: both names end in a zero byte, the buffer is valid for reading.
    let result = unsafe {
        libc::setxattr(
            name.as_ptr(),
            ATTRIBUTE.as_ptr(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::EOPNOTSUPP) {
        return Err(Error::system("change the access list of", path, error));
    }
    let why = format!(
        "the file system of {} keeps no access lists, so channels with an Owner or Group of their own could not be \
         reached; leave these out and give the directory a group that all users are in, or set TBUS_SHM_DIR to \
         another file system",
        path.display()
    );
    Err(Error::Invalid {
        what: "channels",
        why,
    })
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|e| Error::system("inspect", path, io::Error::from(e)))
}
