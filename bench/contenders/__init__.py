"""Who is measured, in the order of the tables."""

from __future__ import annotations

from bench.contenders.base import Contender, Kind
from bench.contenders.gsocks import GSOCKS, GSOCKS_ON_A_LONG_LINK
from bench.contenders.plain import DANTE, MICROSOCKS
from bench.contenders.shadowsocks import SHADOWSOCKS
from bench.contenders.ssh import SSH

#: the load by itself: what no proxy can surpass
NONE = Contender("none", "no proxy", Kind.NONE, (), lambda _: [], lambda: "")

CONTENDERS = (
    NONE,
    *GSOCKS,
    *GSOCKS_ON_A_LONG_LINK,
    *SHADOWSOCKS,
    SSH,
    MICROSOCKS,
    DANTE,
)

__all__ = ["CONTENDERS", "NONE", "Contender", "Kind"]
