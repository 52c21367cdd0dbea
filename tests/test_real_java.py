"""Java's own sockets by SOCKS, which always offer a login and seldom have one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gsocks.access.throttle import Throttle
from tests.support import needs
from tests.support.program import Program
from tests.support.real import (
    LOOPBACK_ONLY,
    NAME,
    PASSWORD,
    Listener,
    Listeners,
    guarded_inbound,
)
from tests.support.waiting import TOO_LONG

JAVA = """
import java.net.*;
import java.util.*;

class Sockets {
    /** How many, the proxy's port, the page's port, and perhaps a login. */
    public static void main(String[] words) throws Exception {
        var proxy = new InetSocketAddress("127.0.0.1", Integer.parseInt(words[1]));
        if (words.length > 3) {
            Authenticator.setDefault(new Authenticator() {
                protected PasswordAuthentication getPasswordAuthentication() {
                    return new PasswordAuthentication(words[3], words[4].toCharArray());
                }
            });
        }
        for (int number = 0; number < Integer.parseInt(words[0]); number++) {
            try (var socket = new Socket(new Proxy(Proxy.Type.SOCKS, proxy))) {
                socket.connect(
                    InetSocketAddress.createUnresolved("localhost", Integer.parseInt(words[2])));
                socket.getOutputStream().write("GET /text/java HTTP/1.0\\r\\n\\r\\n".getBytes());
                var answer = new String(socket.getInputStream().readAllBytes());
                System.out.println(answer.substring(answer.lastIndexOf("\\n") + 1));
            } catch (SocketException error) {
                System.out.println(error.getMessage());
            }
        }
    }
}
"""


def java(
    folder: Path, at: int, web: int, *login: str, user: str = "me", count: int = 1
) -> list[str]:
    """What each socket has come to; ``user``: who runs the program."""
    (folder / "Sockets.java").write_text(JAVA)
    program = needs.program("java", "default-jdk-headless")
    source = str(folder / "Sockets.java")
    done = subprocess.run(
        [program, f"-Duser.name={user}", source, str(count), str(at), str(web), *login],
        capture_output=True,
        text=True,
        timeout=TOO_LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("user", ["me", "web-session", "svc-session-1"])
def test_java_needs_no_login_at_a_listener_without_users(
    inbounds: Listeners, tmp_path: Path, web: int, user: str
) -> None:
    """Whatever the user of its machine is called, whose name it would send."""
    assert java(tmp_path, inbounds.open.port, web, user=user) == ["java"]
    inbounds.open.carried(f"localhost:{web}")


def test_nor_where_names_select_exits(tmp_path: Path, web: int) -> None:
    config = tmp_path / "config.yaml"
    exits = "['direct://?source=127.0.0.2', 'direct://?source=127.0.0.3']"
    config.write_text(f"local: {{listen: '127.0.0.1:0', rules: {LOOPBACK_ONLY}, exits: {exits}}}\n")
    with Program("-c", config) as program:
        assert java(tmp_path, program.port(), web, user="web-session", count=2) == ["java"] * 2
        assert java(tmp_path, program.port(), web, "session-cart17", "x", count=2) == ["java"] * 2
        found = program.wait_for(r"session=cart17 dest=\S+ exit=(\S+) .*outcome=ok", times=2)
        assert len({match[1] for match in found}) == 1


def test_java_without_a_login_locks_no_client_out(tmp_path: Path, web: int) -> None:
    with guarded_inbound(tmp_path) as inbound:
        refused = java(tmp_path, inbound.port, web, count=Throttle.max_failures + 1)
        assert set(refused) == {"SOCKS : authentication failed"}
        inbound.refused("auth_failed")
        assert java(tmp_path, inbound.port, web, NAME, PASSWORD) == ["java"]
        inbound.carried(f"localhost:{web}")


def test_java_logs_in(inbounds: Listeners, tmp_path: Path, web: int) -> None:
    guarded: Listener = inbounds.guarded
    assert java(tmp_path, guarded.port, web, NAME, PASSWORD, count=2) == ["java"] * 2
    guarded.carried(f"localhost:{web}")
