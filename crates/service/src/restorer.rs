//! The process that restores one socket: it becomes the client first, so that the kernel judges what it may.

use crate::fill::{self, Remote, Said};
use crate::packet::{encode, send};
use crate::peer::{self, Peer};
use crate::session::{Session, fault};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, move_into_link_name_space,
    set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use sockcr::kernel::inject::Lazy;
use sockcr::state::descriptor::{Descriptor, Owner};
use sockcr::{Checkpoint, Error, Note, RestoreOptions, Restored};
use sockcr_image::attribute::Writer;
use sockcr_image::{Error as ImageError, number};
use sockcr_sys::descriptor;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a group is called that has no number in a user namespace (`overflowgid`).
const OVERFLOW: u32 = 65534;

/// How a socket is to be restored.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Without what cannot be restored exactly.
    pub lossy: bool,
    /// Not where another socket has the address.
    pub alone: bool,
}

/// What a task comes to: what is said, and the descriptor beside it.
pub type Done = (Said, Option<OwnedFd>);

/// Does something as the client, in a process of its own, and says to the broker what has come of it.
pub fn as_client(
    session: &Session,
    broker: &OwnedFd,
    work: impl FnOnce() -> Result<Done, Error>,
) -> u8 {
    let done = become_client(&session.peer, session.connection.as_fd())
        .map_err(|error| Error::system("become the client", error))
        .and_then(|()| work());
    let (said, beside) = done.unwrap_or_else(|error| {
        let (errno, text) = fault(&error);
        (Said::Failed(errno, text), None)
    });
    let beside: Vec<BorrowedFd<'_>> = beside.iter().map(AsFd::as_fd).collect();
    let told = encode(&said).and_then(|packet| send(broker.as_fd(), &packet, &beside));
    // Who hears nothing says so to the client.
    u8::from(told.is_err())
}

/// Restores the socket of an image, whose holder is the client from then on.
pub fn restore(
    session: &Session,
    image: OwnedFd,
    how: How,
    broker: &OwnedFd,
) -> Result<Done, Error> {
    let failed = |error| Error::system("restore", error);
    let image = fill::content(image).map_err(failed)?;
    let options = RestoreOptions {
        lossy: how.lossy,
        alone: how.alone,
        verify: true,
        ..RestoreOptions::default()
    };
    let line = broker.try_clone().map_err(failed)?;
    let mut injector = Lazy::of(Box::new(Remote(line)));
    let checkpoint = Checkpoint::from_bytes(&image)?;
    let restored = checkpoint.restore_by(&options, &mut injector)?;
    if let Some(Descriptor {
        owner: Owner::Holder,
        ..
    }) = checkpoint.descriptor
    {
        let (fd, client) = (restored.fd.as_fd(), session.peer.pid);
        descriptor::set_owner(fd, descriptor::OWNER_PROCESS, client)
            .map_err(|error| Error::system("restore: owner", error))?;
    }
    Ok((Said::Restored(answer(&restored)?), Some(restored.fd)))
}

/// What a restored socket lacks, as attributes of the answer: a message has room for so many.
fn answer(restored: &Restored) -> Result<Vec<u8>, ImageError> {
    const MOST: usize = 200;
    let mut writer = Writer::new();
    // The place of the descriptor among those of the message.
    writer.u32(number::SOCK_FD, 0)?;
    let lost = &restored.report.not_carried;
    let more = lost.len().saturating_sub(MOST);
    let more = (more > 0).then(|| Note::new("more", format!("{more} more are lost")));
    for note in lost.iter().take(MOST).chain(&more) {
        writer.nested(number::NOT_CARRIED, |inner| {
            inner.str(number::WHAT, &note.what)?;
            inner.str(number::REASON, &note.reason)
        })?;
    }
    Ok(writer.finish())
}

/// Takes on the user namespace of the client, its user, its groups and its capabilities, as far as we have them
/// ourselves; nothing of ours is left. Its network namespace and control group this process is in already.
fn become_client(peer: &Peer, connection: BorrowedFd<'_>) -> io::Result<()> {
    let groups = peer::groups(connection)?;
    let ours = rustix::process::getgroups()?;
    if !ours.is_empty() && ours.iter().map(|group| group.as_raw()).ne(groups) {
        // What is not mapped in the namespace of the client cannot be given up there.
        set_thread_groups(&[])?;
    }
    let own = std::fs::File::open("/proc/self/ns/user")?;
    let elsewhere = peer::id(own.as_fd())? != peer::id(peer.user_namespace.as_fd())?;
    if elsewhere {
        let namespace = peer.user_namespace.as_fd();
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::User))?;
    }
    // The kernel tells them as the namespace numbers them that we are in now.
    let [_, user, group] = peer::numbers(connection)?;
    let mut groups = peer::groups(connection)?;
    // Those that have no number there.
    groups.retain(|group| !elsewhere || *group != OVERFLOW);
    let ours = rustix::process::getgroups()?;
    if ours
        .iter()
        .map(|group| group.as_raw())
        .ne(groups.iter().copied())
    {
        let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
        match set_thread_groups(&groups) {
            // Forbidden in the namespace of the client, so that it does without, as we do.
            Err(rustix::io::Errno::PERM) if ours.is_empty() => {}
            set => set?,
        }
    }
    set_keep_capabilities(true)?;
    let group = Gid::from_raw(group);
    set_thread_res_gid(group, group, group)?;
    let user = Uid::from_raw(user);
    set_thread_res_uid(user, user, user)?;
    let have = capabilities(None)?.permitted;
    let kept = CapabilitySet::from_bits_retain(peer.capabilities) & have;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    crate::sandbox::stay_alone()
}
