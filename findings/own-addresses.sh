#!/usr/bin/env bash
# Linux, psutil: the addresses of the interfaces are not the addresses of the machine.  A route such
# as "local 198.51.100.0/24 dev lo" makes 256 of them: a server on 0.0.0.0 answers at each, and
# psutil.net_if_addrs(), which reads what the interfaces have (as getifaddrs(3), ip address and
# netifaces do), names none.  bind() tells the truth for IPv4, and not for IPv6: there the same
# address can be connected to and not bound, unless IP_FREEBIND is set.  Nor does the source address
# of a connection tell: to a second address of an interface it is the first one.
#
# A proxy or a fetcher that denies "its own addresses" by such a list can be led to its own services.
# Only the routing table knows (RTM_GETROUTE: RTN_LOCAL).
#
# Needs root, for a network namespace of its own.  Seen with Linux 6.18.44 and psutil 7.1.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: psutil==7.1.3
unshare --net "$folder/venv/bin/python" - <<'PY'
import socket
import subprocess

import psutil


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


def answers(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server,
        socket.socket(family) as client,
    ):
        client.settimeout(5)
        client.connect((host, server.getsockname()[1]))
        server.accept()[0].close()
        return client.getsockname()[0]


def can_be_bound(host):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        try:
            sock.bind((host, 0))
        except OSError:
            return False
        return True


ip("link set lo up")
ip("route add local 198.51.100.0/24 dev lo")
ip("-6 route add local 2001:db8:1::/64 dev lo")
ip("address add 203.0.113.1/24 dev lo")
ip("address add 203.0.113.2/24 dev lo")
listed = {each.address for found in psutil.net_if_addrs().values() for each in found}
for host in ("198.51.100.77", "2001:db8:1::77"):
    answers(host)
    assert host not in listed, "it is listed now"
assert can_be_bound("198.51.100.77")
assert not can_be_bound("2001:db8:1::77"), "it can be bound now"
assert answers("203.0.113.2") == "203.0.113.1", "the source is another one now"
print("198.51.100.77 and 2001:db8:1::77 answer; listed are", *sorted(listed))
PY
