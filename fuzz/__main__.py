"""Runs the targets, as many at a time as there are cores; see the package."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TARGETS = (
    "socks5",
    "socks4",
    "proxy_header",
    "datagram",
    "frames",
    "hello",
    "http_requests",
    "http_answers",
    "exit_url",
    "exit_list",
    "username",
    "dns_answer",
    "dns_question",
    "websocket",
    "config_text",
    "shadowsocks",
    "trojan",
    "store_url",
)

ROOT = Path(__file__).parent.parent
#: what was found worth keeping, which the next run begins with, and inputs that fail
KEPT = ROOT / "build" / "fuzz"

#: seconds that one input may take, from which on a parser hangs
PATIENCE = 5
#: bytes of an input
LONGEST = 2048

#: what libFuzzer says when nothing is wrong
_PROGRESS = re.compile("INFO:|WARNING:|#[0-9]|stat::")
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_COVERED = re.compile(r"\bcov: (\d+)")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz")
    parser.add_argument("target", nargs="?", choices=TARGETS, help="left out: all of them")
    parser.add_argument("files", nargs="*", type=Path, help="only see what it says to these inputs")
    seconds = float(os.environ.get("FUZZ_SECONDS", "10"))
    parser.add_argument("--seconds", type=float, default=seconds, help="for each target")
    options = parser.parse_args()
    if options.files:
        for path in options.files:
            importlib.import_module(f"fuzz.{options.target}").check(path.read_bytes())
        return 0
    names = [options.target] if options.target else TARGETS
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [not well for well in pool.map(lambda name: fuzz(name, options.seconds), names)]
    return int(any(failed))


def fuzz(name: str, seconds: float) -> bool:
    """Run one target; whether all went well."""
    target = importlib.import_module(f"fuzz.{name}")
    found = KEPT / name
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds"
        seeds.mkdir()
        for number, seed in enumerate(target.SEEDS):
            (seeds / str(number)).write_bytes(seed)
        words = Path(folder) / "words"
        words.write_text(words_file(target.WORDS))
        command = [
            *(sys.executable, "-u", "-m", "fuzz.one", name, str(KEPT / f"{name}-failed")),
            *(f"-max_total_time={seconds:.0f}", f"-timeout={PATIENCE}", f"-max_len={LONGEST}"),
            f"-seed={os.environ.get('FUZZ_SEED', '0')}",  # 0: another one each time
            *(f"-dict={words}", f"-artifact_prefix={KEPT}/{name}-", "-print_final_stats=1"),
            *map(str, (found, seeds)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)  # noqa: S603
    said = done.stdout + done.stderr
    executed, covered = _EXECUTED.findall(said), _COVERED.findall(said)
    print(
        f"{name:12} {(executed or '?')[-1]:>8} inputs, {(covered or '?')[-1]:>5} edges", flush=True
    )
    if done.returncode:
        print("\n".join(line for line in said.splitlines() if not _PROGRESS.match(line)))
    return not done.returncode


def words_file(words: Iterable[bytes]) -> str:
    """Words as libFuzzer's dictionaries have them."""
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in words)
    return "".join(f'"{word}"\n' for word in escaped)


if __name__ == "__main__":
    sys.exit(main())
