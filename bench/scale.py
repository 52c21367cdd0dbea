"""How much is done for one figure: the full form, and the quick one that only shows it works."""

from __future__ import annotations

from typing import NamedTuple

#: descriptors that a process needs for other things, and for the connections that come and go
_SPARE = 400


class Scale(NamedTuple):
    """The sizes of one run."""

    name: str
    #: how often each contender is measured; the median of these counts
    rounds: int
    #: seconds that a bulk transfer is watched, and seconds before that in which it gets going
    window: float
    warm_up: float
    #: new connections, one sample
    connections: int
    #: connections that are open and silent
    idle: int
    #: small messages there and back
    echoes: int
    #: requests over the long link
    first_bytes: int
    #: other connections that are open while the cost of one is measured: few, and many
    others: tuple[int, int]
    #: clients that stop reading
    stalled: int

    def within(self, descriptors: int) -> Scale:
        """The same with no more open connections than so many descriptors allow a process.

        A proxy needs two for each connection that it carries.
        """
        most = (descriptors - _SPARE) // 2
        few, many = self.others
        return self._replace(
            idle=min(self.idle, most),
            others=(few, min(many, most)),
            stalled=min(self.stalled, most),
        )


FULL = Scale(
    name="full",
    rounds=5,
    window=1.5,
    warm_up=0.3,
    connections=3000,
    idle=5000,
    echoes=5000,
    first_bytes=7,
    others=(10, 5000),
    stalled=1000,
)

QUICK = Scale(
    name="quick",
    rounds=1,
    window=0.1,
    warm_up=0.05,
    connections=100,
    idle=500,
    echoes=300,
    first_bytes=2,
    others=(10, 200),
    stalled=20,
)
