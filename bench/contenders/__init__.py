"""Who is measured, in the order of the tables."""

from __future__ import annotations

from bench.contenders.base import Contender, Kind
from bench.contenders.gsocks import GSOCKS, GSOCKS_ON_A_LONG_LINK
from bench.contenders.plain import DANTE, GLIDER, GOST, HEV, MICROSOCKS
from bench.contenders.shadowsocks import SHADOWSOCKS
from bench.contenders.sing_box import SING_BOX, SING_BOX_PAIR
from bench.contenders.ssh import SSH

#: the load by itself: what no proxy can surpass
NONE = Contender("none", "no proxy", Kind.NONE, (), lambda _: [], lambda: "")

CONTENDERS = (
    NONE,
    *GSOCKS,
    *GSOCKS_ON_A_LONG_LINK,
    *SHADOWSOCKS,
    SING_BOX_PAIR,
    SSH,
    MICROSOCKS,
    DANTE,
    HEV,
    SING_BOX,
    GOST,
    GLIDER,
)

__all__ = ["CONTENDERS", "NONE", "Contender", "Kind"]
