"""Writes small files in the MMDB format (MaxMind DB file format specification, version 2.0)."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path


def write_mmdb(path: Path, networks: Mapping[str, object]) -> None:
    """A file that has the value of each network, IPv4 or IPv6; its record size is 24 bits."""
    data = b""
    #: each node's two records: None, another node's number, or ("data", offset)
    nodes: list[list[object]] = [[None, None]]
    for text, value in networks.items():
        network = ipaddress.ip_network(text)
        number, length = int(network.network_address), network.prefixlen
        if network.version == 4:  # IPv4 addresses stand at ::/96
            length += 96
        at = 0
        for bit in range(127, 127 - length + 1, -1):
            side = number >> bit & 1
            if nodes[at][side] is None:
                nodes.append([None, None])
                nodes[at][side] = len(nodes) - 1
            following = nodes[at][side]
            assert isinstance(following, int)
            at = following
        nodes[at][number >> (128 - length) & 1] = ("data", len(data))
        data += _encoded(value)
    tree = b"".join(
        _record(record, len(nodes)).to_bytes(3, "big") for node in nodes for record in node
    )
    about = {
        "node_count": len(nodes),
        "record_size": 24,
        "ip_version": 6,
        "database_type": "Test-Country",
        "languages": ["en"],
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1795953600,
        "description": {"en": "for tests"},
    }
    path.write_bytes(tree + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + _encoded(about))


def _record(record: object, count: int) -> int:
    if record is None:
        return count
    if isinstance(record, int):
        return record
    assert isinstance(record, tuple)
    return count + 16 + int(record[1])


def _encoded(value: object) -> bytes:
    if isinstance(value, str):
        raw = value.encode()
        assert len(raw) < 29
        return bytes([2 << 5 | len(raw)]) + raw
    if isinstance(value, int):
        raw = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return bytes([6 << 5 | len(raw)]) + raw
    if isinstance(value, dict):
        parts = b"".join(_encoded(name) + _encoded(part) for name, part in value.items())
        return bytes([7 << 5 | len(value)]) + parts
    assert isinstance(value, list)
    # types above 7 are in a byte of their own, less 7
    return bytes([len(value), 11 - 7]) + b"".join(map(_encoded, value))
