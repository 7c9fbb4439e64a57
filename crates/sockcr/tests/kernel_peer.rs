//! Who connected, by BPF: what the process was then, not what it is now.

use rustix::net::{
    AddressFamily, SocketFlags, SocketType, accept, bind, connect, listen, socket_with,
};
use rustix::process::{getegid, geteuid};
use sockcr::kernel::reader;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

#[test]
fn who_connected_is_told_with_its_capabilities() {
    let Ok(reader) = reader() else {
        assert!(!geteuid().is_root(), "root reads the kernel");
        return;
    };
    let open = || {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    };
    let folder = std::env::temp_dir().join(format!("sockcr-peer-{}", std::process::id()));
    let address = rustix::net::SocketAddrUnix::new(&folder).unwrap();
    let listener = open();
    bind(&listener, &address).unwrap();
    listen(&listener, 1).unwrap();
    let client = open();
    connect(&client, &address).unwrap();
    std::fs::remove_file(&folder).unwrap();
    let accepted = accept(&listener).unwrap();

    let peer = reader.peer(accepted.as_fd()).unwrap();
    assert_eq!(
        (peer.user, peer.group),
        (geteuid().as_raw(), getegid().as_raw())
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
    assert_eq!(peer.effective, effective);
    let namespace = std::fs::metadata("/proc/self/ns/user").unwrap().ino();
    assert_eq!(u64::from(peer.namespace), namespace);

    assert!(reader.peer(open().as_fd()).is_err(), "nobody has connected");
}
