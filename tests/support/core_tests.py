"""Which tests are to find a fault in which module of the core, for tests/support/mutation.py.

The core is what carries bytes and what chooses their exits.
"""

from __future__ import annotations

from tests.support.program import ROOT

_PACKAGE = ROOT / "gsocks"

#: the modules, and the names of test files, those first that are quick and find most
TESTS = {
    "pool": "pool tunnel fast_open tunnel_begin",
    "relay": "relay splice pump bandwidth",
    "tunnel": "tunnel protocol_vectors pump fast_open server pool served_tunnel",
    "net/pump": "pump splice tunnel relay",
    "rotation/address_probes": "address_probes",
    "rotation/apply": "apply watch admin",
    "rotation/beginning": "beginning tunnel_begin straight",
    "rotation/budget": "budget budgets saved",
    "rotation/budgets": "budgets budget saved",
    "rotation/build": "rotation exit_group watch apply http_retry",
    "rotation/cache": "watch",
    "rotation/checks": "checks exit_group",
    "rotation/choices": "session failover strict_sessions address_probes",
    "rotation/connect_probes": "connect_probes",
    "rotation/connected": (
        "rotation per_host http_pin hedging failover bind budgets http_absolute_form http_kept"
    ),
    "rotation/countries": "list_forms lists geo",
    "rotation/evidence": "evidence roster failover rotation health exit_simulation",
    "rotation/failover": (
        "failover per_host rotation hedging strict_sessions connection_log http_retry"
    ),
    "rotation/first_attempt": "beginning failover",
    "rotation/geo": "geo address_probes",
    "rotation/given_settings": "control roster",
    "rotation/group": "rotation failover bind datagram hedging http_retry http_kept exit_group",
    "rotation/health": "health evidence roster failover saved",
    "rotation/hedging": "hedging",
    "rotation/host_limits": "host_limits per_host http_retry",
    "rotation/indexed": "indexed policy",
    "rotation/list_entries": "lists list_forms list_json",
    "rotation/list_json": "list_json",
    "rotation/list_kinds": "list_forms lists",
    "rotation/list_lines": "list_forms lists",
    "rotation/list_objects": "list_forms lists",
    "rotation/list_straight": "list_straight lists",
    "rotation/loop_probes": "loops_program",
    "rotation/lists": "lists list_forms sources watch",
    "rotation/member": "roster failover rotation budgets address_probes",
    "rotation/outbound_address": "outbound_address address_probes session",
    "rotation/pages": "pages checks",
    "rotation/part": "host_limits per_host roster",
    "rotation/policy": "policy rotation roster ring",
    "rotation/probe": "connect_probes probe",
    "rotation/probe_pool": "probe_pool connect_probes address_probes",
    "rotation/ring": "ring session failover",
    "rotation/roster": "roster failover rotation session checks per_host",
    "rotation/saved": "saved state_sync budgets",
    "rotation/session": "session failover saved address_probes strict_sessions",
    "rotation/sources": "sources watch",
    "rotation/state_clock": "saved state_sync budgets",
    "rotation/state_file": "state_file state_sync",
    "rotation/state_sync": "state_sync saved",
    "rotation/views": "roster failover session rotation exit_selector",
    "rotation/watch": "watch apply",
}


def core() -> set[str]:
    """The modules of the core, as paths below gsocks/ without their endings."""
    rotation = {f"rotation/{path.stem}" for path in (_PACKAGE / "rotation").glob("[!_]*.py")}
    return {"pool", "relay", "tunnel", "net/pump"} | rotation


def source(module: str) -> str:
    """The text of a module."""
    return (_PACKAGE / f"{module}.py").read_text()
