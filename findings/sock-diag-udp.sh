#!/usr/bin/env bash
# Linux: a sock_diag request for one UDP socket (SOCK_DIAG_BY_FAMILY, sock_diag(7)) takes the two ends
# the wrong way round.  idiag_src and idiag_sport are the socket's own address in what comes back, and
# in a request for TCP; in a request for UDP they are its peer's.  Two sockets that may both match
# give the other one's owner, and no error: the answer's port is what tells.
#
# The kernel seems to look for the socket that a packet from src to dst would reach.
#
# Seen with Linux 6.18.44.
set -euo pipefail
python3 - <<'PY'
import socket
import struct

HEADER = struct.Struct("=IHHII")


def found(protocol, here, there):
    ends = struct.pack("!HH", here[1], there[1])
    ends += b"".join(socket.inet_aton(host).ljust(16, b"\0") for host, _ in (here, there))
    body = struct.pack("=BBBxI", socket.AF_INET, protocol, 0, 0xFFFFFFFF) + ends
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as netlink:
        netlink.send(HEADER.pack(HEADER.size + len(body), 20, 1, 0, 0) + body)
        answer = netlink.recv(8192)
    assert HEADER.unpack_from(answer)[1] == 20, "an error"
    return struct.unpack_from("!H", answer, HEADER.size + 4)[0]


with (
    socket.create_server(("127.0.0.1", 0)) as listener,
    socket.create_connection(listener.getsockname()) as near,
    socket.socket(type=socket.SOCK_DGRAM) as one,
    socket.socket(type=socket.SOCK_DGRAM) as other,
):
    one.bind(("127.0.0.1", 0))
    other.bind(("127.0.0.1", 0))
    ports = one.getsockname()[1], other.getsockname()[1]
    assert found(socket.IPPROTO_TCP, near.getsockname(), near.getpeername()) == near.getsockname()[1]
    assert found(socket.IPPROTO_UDP, one.getsockname(), other.getsockname()) == ports[1], "changed"
    assert found(socket.IPPROTO_UDP, other.getsockname(), one.getsockname()) == ports[0], "changed"
print("of UDP the socket at the second address is found, of TCP the one at the first")
PY
