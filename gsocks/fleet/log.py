"""The logger of all that gateways share."""

from __future__ import annotations

import logging

log = logging.getLogger("gsocks.fleet")
