# A program that sends back what it gets at two sockets, one in an event loop, one in a thread that
# blocks, and tells of every error at a line of its standard input.
import json, selectors, socket, sys, threading

wrong = []


def bound(timeout):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    sock.settimeout(timeout)
    return sock


def blocks(sock):
    while True:
        try:
            data, sender = sock.recvfrom(2000)
            sock.sendto(data, sender)
        except OSError as error:
            wrong.append(f"thread: {error}")


def is_ready(sock):
    data, sender = sock.recvfrom(2000)
    sock.sendto(data, sender)


def is_told(_):
    if not sys.stdin.readline():
        sys.exit()
    print(json.dumps({"wrong": wrong}), flush=True)


first, second = bound(0), bound(60)
threading.Thread(target=blocks, args=(second,), daemon=True).start()
selector = selectors.DefaultSelector()
selector.register(first, selectors.EVENT_READ, is_ready)
selector.register(sys.stdin, selectors.EVENT_READ, is_told)
facts = {"fds": [sock.fileno() for sock in (first, second)]}
facts["ports"] = [sock.getsockname()[1] for sock in (first, second)]
print(json.dumps(facts), flush=True)
while True:
    for key, events in selector.select():
        if events != selectors.EVENT_READ:
            wrong.append(f"events: {events}")
        try:
            key.data(key.fileobj)
        except OSError as error:
            wrong.append(f"loop: {error}")
