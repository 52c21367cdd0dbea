"""What is measured, in the order of the tables."""

from __future__ import annotations

from bench.figures.base import Figure, Goal, Measure
from bench.figures.bulk import BULK
from bench.figures.connections import CONNECTIONS
from bench.figures.echo import ECHO_FIGURE
from bench.figures.first_byte import FIRST_BYTE
from bench.figures.growth import GROWTH
from bench.figures.idle import IDLE
from bench.figures.stalled import STALLED

FIGURES = (BULK, CONNECTIONS, IDLE, ECHO_FIGURE, FIRST_BYTE, GROWTH, STALLED)

__all__ = ["FIGURES", "Figure", "Goal", "Measure"]
