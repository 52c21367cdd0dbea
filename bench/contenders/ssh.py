"""``ssh -D`` to an sshd of our own, with keys made for one measurement."""

from __future__ import annotations

import getpass
import os
import subprocess

from bench.contenders.base import Command, Contender, Endpoints, Kind, find, said_version

#: where sshd insists on an empty directory if root starts it; init scripts make it
_PRIVSEP = "/run/sshd"

_SSHD_CONFIG = """
ListenAddress {far.host}:{far.port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
UsePAM no
StrictModes no
LogLevel ERROR
"""


def _set_up(endpoints: Endpoints) -> list[Command]:
    folder = endpoints.folder
    for name in ("host", "user"):
        subprocess.run(
            [find("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    (folder / "sshd").write_text(_SSHD_CONFIG.format(far=endpoints.far, folder=folder))
    if os.geteuid() == 0:
        os.makedirs(_PRIVSEP, mode=0o755, exist_ok=True)
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "no",
        "ExitOnForwardFailure": "yes",
        "LogLevel": "ERROR",
    }
    near = [find("ssh"), "-F", "none", "-N", "-D", "{}:{}".format(*endpoints.inbound)]
    near += ["-i", str(folder / "user"), "-p", str(endpoints.far_seen.port)]
    for name, value in options.items():
        near += ["-o", f"{name}={value}"]
    return [
        # sshd wants to be called by its whole path
        Command([find("sshd"), "-D", "-e", "-f", str(folder / "sshd")], endpoints.far.port),
        Command([*near, f"{getpass.getuser()}@{endpoints.far_seen.host}"], endpoints.inbound.port),
    ]


SSH = Contender(
    "ssh",
    "ssh -D",
    Kind.PAIR,
    ("ssh", "sshd", "ssh-keygen"),
    _set_up,
    lambda: said_version("ssh", "-V"),
)
