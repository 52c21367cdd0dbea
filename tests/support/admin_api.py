"""The admin API of a program that a test runs."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.support.program import Program
from tests.support.waiting import TOO_LONG


class Admin:
    """The admin API of a program."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._port = int(program.wait_for(r"admin: listening on http://\S+:(\d+) ")[0][1])
        self._token = (folder / "admin.token").read_text().strip()

    def ask(self, method: str, target: str, body: object = None) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=TOO_LONG)
        headers = {"Authorization": f"Bearer {self._token}"}
        connection.request(method, target, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        assert answer.status == 200
        told = json.loads(answer.read())
        connection.close()
        return told

    def states(self) -> dict[str, str]:
        return {each["name"]: each["state"] for each in self.ask("GET", "/v1/exits")["items"]}
