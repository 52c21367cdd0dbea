"""Floods of the admin's port by clients that don't have its token."""

from __future__ import annotations

import re

from tests.attack.flood import Attacked, Scene, flood
from tests.attack.witness import Witness

_CONFIG = """
admin: {listen: 127.0.0.1:0}
local: {listen: 127.0.0.1:0, rules: [allow all]}
"""


def _attacked(scene: Scene, data: bytes, head: bytes = b"") -> Attacked:
    program = scene.gsocks(_CONFIG)
    where = program.wait_for(r"admin: listening on http://127\.0\.0\.1:(\d+)")[0]
    scene.pour(int(re.sub(r".*:", "", where[0])), data, lambda sock: sock.sendall(head))
    return Attacked(program, Witness(program.port()))


@flood("a client without the token sends the admin a body without end")
def admin_endless_body(scene: Scene) -> Attacked:
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n"
    return _attacked(scene, bytes(1 << 18), head)


@flood("a client without the token asks the admin again and again")
def admin_requests(scene: Scene) -> Attacked:
    return _attacked(scene, b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
