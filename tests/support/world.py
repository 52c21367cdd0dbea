"""What answers in a small internet of its own (tests/test_scraping.py): a site, and proxies.

    python world.py FOLDER          where the names of HOSTS are addresses of this machine

Says "ready" when all of it listens, and ends when standard input does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import trustme
from gevent.fileobject import FileObject
from gevent.pywsgi import WSGIServer
from gevent.ssl import PROTOCOL_TLS_SERVER, SSLContext
from nacl.pwhash import argon2id

from gsocks import LocalServer

#: addresses that are not private, because that is what the rules look at
SITE = "93.184.215.14"
PROXIES = {f"proxy{n}.example.net": f"198.51.100.{n}" for n in range(1, 7)}
HOSTS = {"localhost": "127.0.0.1", "example.com": SITE, **PROXIES}


def who_asks(environ: dict[str, str], start: Callable[..., object]) -> list[bytes]:
    body = environ["REMOTE_ADDR"].encode()
    fields = [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))]
    if environ.get("HTTP_CONNECTION") == "close":
        fields.append(("Connection", "close"))
    start("200 OK", fields)
    return [body]


def main(folder: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    tls = SSLContext(PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(tls)
    WSGIServer((SITE, 80), who_asks, log=None).start()
    WSGIServer((SITE, 443), who_asks, log=None, ssl_context=tls).start()
    # the cheapest hash that there is: no login has to wait for it
    hashed = argon2id.str(b"password", argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN).decode()
    users = {"user": hashed}
    # the site is at an address of this machine, which the default rules deny
    for ip in PROXIES.values():
        for port in (1080, 8080):
            exits = [f"direct://?source={ip}"]
            LocalServer((ip, port), exits, users=users, rules=["allow all"]).start()
    print("ready", flush=True)
    FileObject(sys.stdin.fileno(), closefd=False).read()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
