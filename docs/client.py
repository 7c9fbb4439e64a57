#!/usr/bin/env python3
"""Dumps a socket by its inode, closes it and restores it, by the messages of docs/service.md.

    python3 client.py [/run/sockcr/socket]
"""

import os
import socket
import struct
import sys

ERROR, DONE, CONTROLLER = 2, 3, 16
REQUEST, MULTI = 1, 2
DUMP, RESTORE, QUEUE = 1, 2, 3
GETFAMILY, FAMILY_ID, FAMILY_NAME = 3, 1, 2
INODE = 1


def attribute(number, payload):
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)


def attributes(data):
    while data:
        length, number = struct.unpack_from("=HH", data)
        yield number & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]


class Client:
    def __init__(self, path="/run/sockcr/socket"):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(path)
        self.sequence = 0
        self.send(CONTROLLER, GETFAMILY, attribute(FAMILY_NAME, b"af_inet_cr\0"))
        [(_, answer, _)] = self.answer()
        (self.family,) = struct.unpack("=H", dict(attributes(answer))[FAMILY_ID])

    def send(self, kind, command, payload=b"", goes_on=False):
        self.sequence += not goes_on
        body = struct.pack("=BBH", command, 1, 0) + payload
        self.socket.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST, self.sequence, 0) + body)

    def answer(self):
        """The messages of an answer: command, attributes, descriptors."""
        messages = []
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 18, 1)
            if not packet:
                raise ConnectionError("the service has closed the connection")
            _, kind, flags, _, _ = struct.unpack_from("=IHHII", packet)
            if kind == ERROR:
                told = dict(attributes(packet[36:]))
                raise OSError(-struct.unpack_from("=i", packet, 16)[0], told[1].rstrip(b"\0").decode())
            if kind == DONE:
                return messages
            messages.append((packet[16], packet[20:], descriptors))
            if not flags & MULTI:
                return messages

    def dump(self, inode):
        self.send(self.family, DUMP, attribute(INODE, struct.pack("=I", inode)))
        return [(command, payload) for command, payload, _ in self.answer()]

    def restore(self, messages):
        for command, payload in messages:
            self.send(self.family, RESTORE if command == DUMP else QUEUE, payload, command == QUEUE)
        self.send(DONE, 0, goes_on=True)
        [(_, _, [descriptor])] = self.answer()
        return socket.socket(fileno=descriptor)


if __name__ == "__main__":
    client = Client(*sys.argv[1:])
    old = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    old.bind(("127.0.0.1", 0))
    address = old.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"not lost", address)
    dumped = client.dump(os.fstat(old.fileno()).st_ino)
    old.close()
    new = client.restore(dumped)
    assert new.getsockname() == address
    print(f"family {client.family}: {address[0]}:{address[1]} restored, {new.recv(100).decode()!r} in it")
