"""The characters of a token: a method, a field's name, a protocol (RFC 9110 section 5.6.2)."""

from __future__ import annotations

import re
from string import ascii_letters, digits

#: every tchar
TCHARS = "!#$%&'*+-.^_`|~" + digits + ascii_letters

#: a regular expression for one token
TOKEN = f"[{re.escape(TCHARS)}]+"
