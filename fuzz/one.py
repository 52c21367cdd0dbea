"""One target under the fuzzer, in its own process: ``python -m fuzz.one TARGET FAILED OPTION...``.

FAILED is where an input goes that fails; the options are libFuzzer's.  What the target imports is
instrumented as it is imported.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris


def main() -> None:
    name, failed, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["gsocks", "h11", "wsproto"]):
        target = importlib.import_module(f"fuzz.{name}")

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            # libFuzzer keeps such an input too, but not where gevent's threads outlive its end
            Path(failed).write_bytes(data)
            raise

    atheris.Setup([name, *options], check)
    atheris.Fuzz()  # which ends the process


if __name__ == "__main__":
    main()
