//! What the client makes of answers: right ones, and those of a service that lies.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::packet::line;
use rustix::net::sockopt::set_socket_send_buffer_size;
use std::error::Error as _;
use std::net::UdpSocket;

/// A client that is connected to us, and our end.
fn connected() -> (Client, OwnedFd) {
    let (socket, service) = line().unwrap();
    let client = Client {
        socket,
        sequence: 0,
        receiver: Receiver::default(),
    };
    (client, service)
}

/// The header of what answers the first request.
fn first() -> Header {
    Header {
        sequence: 1,
        ..crate::session::nothing()
    }
}

/// What a client makes of these packets, which are there before it asks and after which we close.
fn told<T>(packets: &[Vec<u8>], ask: impl FnOnce(&mut Client) -> T) -> T {
    let (mut client, service) = connected();
    for packet in packets {
        send(service.as_fd(), packet, &[]).unwrap();
    }
    shutdown(&service, Shutdown::Write).unwrap();
    ask(&mut client)
}

fn dumped(packets: &[Vec<u8>]) -> Result<Dumped, Error> {
    told(packets, |client| client.dump(&Target::Inode(1)))
}

fn listed(packets: &[Vec<u8>]) -> Result<Listing, Error> {
    told(packets, |client| client.list(None))
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    let error = answer.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
    error.to_string()
}

fn attributes_of(fill: impl FnOnce(&mut Writer) -> Result<(), ImageError>) -> Vec<u8> {
    let mut writer = Writer::new();
    fill(&mut writer).unwrap();
    writer.finish()
}

fn a_checkpoint() -> Checkpoint {
    Checkpoint::dump(&UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap()
}

fn a_dump() -> Vec<u8> {
    let messages = image::messages(&a_checkpoint(), 1).unwrap();
    first().family(Command::Dump, flags::MULTI, &messages[0].attributes)
}

fn a_listed() -> Vec<u8> {
    let attributes = attributes_of(|writer| writer.u32(number::INODE, 7));
    first().family(Command::List, flags::MULTI, &attributes)
}

#[test]
fn a_right_answer_is_a_socket() {
    let answer = dumped(&[a_dump(), first().done()]).unwrap();
    assert_eq!((answer.sockets.len(), answer.left_out.len()), (1, 0));
    let answer = listed(&[a_listed(), first().done()]).unwrap();
    assert_eq!(answer.sockets[0].inode, 7);
    assert!(listed(&[first().done()]).unwrap().sockets.is_empty());
}

#[test]
fn a_length_that_is_not_that_of_the_packet_is_refused() {
    for length in [0, 15, 16, 19, 24, u32::MAX] {
        let mut packet = a_dump();
        packet[..4].copy_from_slice(&length.to_ne_bytes());
        refused(dumped(&[packet, first().done()]));
    }
    for cut in 1..24 {
        refused(dumped(&[a_dump()[..cut].to_vec(), first().done()]));
    }
    let mut longer = a_dump();
    longer.extend([0; 4]);
    refused(dumped(&[longer, first().done()]));
}

#[test]
fn an_attribute_that_is_longer_than_its_message_is_refused() {
    for length in [0_u16, 3, 9, u16::MAX] {
        let mut packet = a_listed();
        packet[20..22].copy_from_slice(&length.to_ne_bytes());
        refused(listed(&[packet, first().done()]));
        let mut packet = a_dump();
        packet[20..22].copy_from_slice(&length.to_ne_bytes());
        refused(dumped(&[packet, first().done()]));
    }
}

#[test]
fn an_address_or_a_holder_of_another_size_is_refused() {
    for number in [number::LOCAL, number::HOLDER, number::COOKIE, number::NETNS] {
        for size in [0, 3, 4, 15, 17, 27, 29] {
            let attributes = attributes_of(|writer| writer.put(number, &vec![0; size]));
            let packet = first().family(Command::List, flags::MULTI, &attributes);
            refused(listed(&[packet, first().done()]));
        }
    }
}

#[test]
fn what_answers_another_request_is_refused() {
    let other = Header {
        sequence: 2,
        ..first()
    };
    refused(listed(&[other.done()]));
    refused(listed(&[a_listed(), other.done()]));
    refused(listed(&[other.error(1, "no", None)]));
    // Who is turned away has asked nothing yet.
    let early = Header {
        sequence: 0,
        ..first()
    };
    let error = listed(&[early.error(87, "service: too many clients", None)]).unwrap_err();
    assert_eq!(error.to_string(), "service: too many clients");
}

#[test]
fn an_unknown_command_or_kind_is_refused() {
    for (at, byte) in [(16, 0), (16, 7), (16, 255), (4, 33), (5, 1)] {
        let mut packet = a_listed();
        packet[at] = byte;
        refused(listed(&[packet, first().done()]));
    }
}

#[test]
fn an_answer_to_something_else_is_refused() {
    refused(listed(&[a_dump(), first().done()]));
    let figures = first().family(Command::Metrics, 0, &[]);
    refused(dumped(&[figures.clone(), first().done()]));
    refused(told(&[figures, first().done()], Client::check));
    refused(told(&[a_listed()], Client::metrics));
    // By its number alone the controller's command 1 is a DUMP.
    let controller = first().controller(controller::NEW_FAMILY, flags::MULTI, &a_dump()[20..]);
    refused(dumped(&[controller, first().done()]));
}

#[test]
fn an_acknowledgement_is_no_end_of_several() {
    refused(listed(&[
        a_listed(),
        first().ack(),
        a_listed(),
        first().done(),
    ]));
}

#[test]
fn what_was_cut_off_is_no_answer() {
    let error = listed(&[a_listed()]).unwrap_err();
    assert!(is_closed(&error), "{error}");
    let error = told(&[], Client::metrics).unwrap_err();
    assert!(is_closed(&error), "{error}");
}

#[test]
fn a_family_with_another_number_is_refused() {
    let family = |number: u16| {
        let attributes =
            attributes_of(|writer| writer.put(controller::FAMILY_ID, &number.to_ne_bytes()));
        first().controller(controller::NEW_FAMILY, 0, &attributes)
    };
    told(&[family(32)], Client::find_family).unwrap();
    refused(told(&[family(33)], Client::find_family));
    refused(told(
        &[first().controller(controller::NEW_FAMILY, 0, &[])],
        Client::find_family,
    ));
    let asks = first().controller(controller::GET_FAMILY, 0, &message::family());
    refused(told(&[asks], Client::find_family));
    refused(told(&[first().done()], Client::find_family));
}

#[test]
fn something_that_waits_belongs_to_a_socket() {
    let orphan = first().family(Command::Queue, flags::MULTI, &[]);
    refused(dumped(&[orphan, first().done()]));
}

#[test]
fn an_error_is_told_by_kind() {
    for (errno, kind) in [
        (2, ErrorKind::NotFound),
        (88, ErrorKind::NotASocket),
        (38, ErrorKind::NotSupported),
        (1, ErrorKind::NotPermitted),
        (13, ErrorKind::NotPermitted),
        (22, ErrorKind::BadInput),
        (95, ErrorKind::Refused),
        (90, ErrorKind::System),
        (62, ErrorKind::System),
        (87, ErrorKind::System),
    ] {
        let packet = first().error(errno, "udp:*:53: why: so\nhelp: do this", Some(20));
        let error = listed(&[packet]).unwrap_err();
        assert_eq!(error.kind(), kind, "errno {errno}");
        assert_eq!(error.to_string(), "udp:*:53: why: so");
        assert_eq!(error.next_step(), Some("do this"));
        if kind == ErrorKind::System {
            let source = error.source().unwrap().downcast_ref::<io::Error>();
            assert_eq!(source.unwrap().raw_os_error(), Some(errno));
        }
    }
}

#[test]
fn an_error_without_a_text_says_its_errno() {
    let mut packet = first().error(2, "", None);
    packet.truncate(36);
    packet[..4].copy_from_slice(&36_u32.to_ne_bytes());
    let error = listed(&[packet]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "service: no such file or directory");
    assert_eq!(error.next_step(), None);
}

#[test]
fn an_errno_that_there_is_none_of_is_an_error_all_the_same() {
    for errno in [-1, -22, 4096, 65536, i32::MAX, -i32::MAX] {
        let error = listed(&[first().error(errno, "what: why", None)]).unwrap_err();
        assert_eq!(error.to_string(), "what: why");
        assert_eq!(error.kind(), ErrorKind::System, "errno {errno}");
    }
    let mut packet = first().error(1, "what: why", None);
    packet[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
    refused(listed(&[packet]));
}

#[test]
fn descriptors_that_nobody_asked_for_are_not_kept() {
    let (mut client, service) = connected();
    let (mut reader, writer) = io::pipe().unwrap();
    for _ in 0..10 {
        send(service.as_fd(), &a_listed(), &[writer.as_fd()]).unwrap();
    }
    drop(writer);
    send(service.as_fd(), &a_listed(), &[]).unwrap();
    send(service.as_fd(), &first().done(), &[]).unwrap();
    client.ask(Command::List, &[], &[]).unwrap();
    let parts = client.several(&[Command::List]).unwrap();
    assert_eq!(parts.len(), 11);
    // Nobody has the other end any more.
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    assert_eq!(io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
}

#[test]
fn a_restore_gets_its_descriptor() {
    let (mut client, service) = connected();
    let answer = first().family(
        Command::Restore,
        0,
        &attributes_of(|writer| writer.u32(number::SOCK_FD, 0)),
    );
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    send(service.as_fd(), &answer, &[socket.as_fd()]).unwrap();
    let restored = client.restore(&a_checkpoint(), false, false).unwrap();
    let flags = rustix::io::fcntl_getfd(&restored.fd).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let restored = UdpSocket::from(restored.fd);
    assert_eq!(restored.local_addr().unwrap(), socket.local_addr().unwrap());

    let (mut client, service) = connected();
    send(service.as_fd(), &answer, &[]).unwrap();
    refused(client.restore(&a_checkpoint(), false, false));
}

#[test]
fn an_error_that_waits_is_read_when_the_service_has_closed() {
    let (mut client, service) = connected();
    send(
        service.as_fd(),
        &first().error(62, "restore: too slow", None),
        &[],
    )
    .unwrap();
    drop(service);
    let error = client.restore(&a_checkpoint(), false, false).unwrap_err();
    assert_eq!(error.to_string(), "restore: too slow");
}

/// The service would make a socket of what it has got, without the rest.
#[test]
fn a_restore_that_was_not_sent_whole_is_not_ended() {
    let (mut client, service) = connected();
    set_socket_send_buffer_size(&client.socket, 16 << 10).unwrap();
    let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
    receiver
        .send_to(&[7; 60_000], receiver.local_addr().unwrap())
        .unwrap();
    let checkpoint = Checkpoint::dump(&receiver).unwrap();
    assert_eq!(checkpoint.receive_queue.len(), 1);
    let answer = first().family(Command::Restore, 0, &[]);
    send(service.as_fd(), &answer, &[receiver.as_fd()]).unwrap();
    let error = client.restore(&checkpoint, false, false).unwrap_err();
    let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
    assert_eq!(source.raw_os_error(), Some(90), "EMSGSIZE: {error}");
    let mut heard = Receiver::default();
    assert_eq!(
        heard.receive(service.as_fd()).unwrap().bytes[16],
        Command::Restore as u8
    );
    assert!(heard.receive(service.as_fd()).unwrap().bytes.is_empty());
}
