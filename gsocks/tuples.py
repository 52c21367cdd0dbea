"""How named tuples are made on the way of each connection."""

from __future__ import annotations

#: what the class of a NamedTuple calls, one call deeper, to make an object of its fields
new_tuple = tuple.__new__
