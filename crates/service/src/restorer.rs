//! The process that restores one socket: it becomes the client first, so that the kernel judges what it may.

use crate::broker::{Client, fault};
use crate::fill::{self, Remote};
use crate::peer::{self, Peer};
use crate::request::Request;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, capabilities, move_into_link_name_space,
    set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use sockcr::kernel::inject::Lazy;
use sockcr::state::descriptor::{Descriptor, Owner};
use sockcr::{Checkpoint, Error, RestoreOptions, Restored};
use sockcr_image::attribute::Writer;
use sockcr_image::number;
use sockcr_sys::descriptor;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a group is called that has no number in a user namespace (`overflowgid`).
const OVERFLOW: u32 = 65534;

/// What a child ends with that could not tell the client all: nobody is there, or takes it.
pub const UNTOLD: u8 = 254;

/// How a socket is to be restored.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Without what cannot be restored exactly.
    pub lossy: bool,
    /// Not where another socket has the address.
    pub alone: bool,
}

/// Does something as the client, and answers the client. Answers the errno, 0 for success; nothing of this process is to
/// be used afterwards.
pub fn as_client<T>(
    client: &Client,
    request: &Request,
    work: impl FnOnce() -> Result<T, Error>,
    tell: impl FnOnce(T) -> io::Result<()>,
) -> u8 {
    let done = become_client(&client.peer, client.connection.as_fd())
        .map_err(|error| Error::system("become the client", error))
        .and_then(|()| work());
    let (errno, told) = match done {
        Ok(done) => (0, tell(done)),
        Err(error) => {
            let (errno, text) = fault(&error);
            (errno, client.refuse(request, errno, &text, None))
        }
    };
    match told {
        Ok(()) => u8::try_from(errno).unwrap_or(u8::MAX),
        Err(_) => UNTOLD,
    }
}

/// Restores the socket of an image as the client.
pub fn run(client: &Client, request: &Request, image: OwnedFd, how: How, broker: OwnedFd) -> u8 {
    as_client(
        client,
        request,
        || restore(client, image, how, broker),
        |restored| client.give(request, &answer(&restored), restored.fd.as_fd()),
    )
}

fn restore(client: &Client, image: OwnedFd, how: How, broker: OwnedFd) -> Result<Restored, Error> {
    let image = fill::content(image.into()).map_err(|error| Error::system("restore", error))?;
    let options = RestoreOptions {
        lossy: how.lossy,
        alone: how.alone,
        verify: true,
        ..RestoreOptions::default()
    };
    let mut injector = Lazy::of(Box::new(Remote(broker)));
    let checkpoint = Checkpoint::from_bytes(&image)?;
    let restored = checkpoint.restore_by(&options, &mut injector)?;
    // The process that holds it is the client from now on.
    if let Some(Descriptor {
        owner: Owner::Holder,
        ..
    }) = checkpoint.descriptor
    {
        descriptor::set_owner(
            restored.fd.as_fd(),
            descriptor::OWNER_PROCESS,
            client.peer.pid,
        )
        .map_err(|error| Error::system("restore: owner", error))?;
    }
    Ok(restored)
}

/// What a restored socket lacks, as attributes of the answer.
fn answer(restored: &Restored) -> Vec<u8> {
    let mut writer = Writer::new();
    // The place of the descriptor among those of the message.
    let mut written = writer.u32(number::SOCK_FD, 0);
    for note in &restored.report.not_carried {
        written = written.and_then(|()| {
            writer.nested(number::NOT_CARRIED, |inner| {
                inner.str(number::WHAT, &note.what)?;
                inner.str(number::REASON, &note.reason)
            })
        });
    }
    debug_assert!(written.is_ok(), "notes are short");
    writer.finish()
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
