"""Mutation testing: small faults are put into the core, and its tests must find them.

    python -m tests.support.mutation --count 300 --seed 9

Cosmic Ray makes the mutants; it leaves open which tests are to find a fault in which module, and
has no sample of a whole package, which is what this module adds.  (mutmut imports the code once
and forks for each mutant, which gevent's hub does not survive.)  Each process works on a copy of
the repository.  A mutant is killed if the tests of its module fail or don't end in time; those that
survive are printed as diffs, and the mutation score without those that tests/support/
equivalent_mutants.py lists.  A run that was interrupted goes on with the mutants that are left.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from parso.python.tree import Name

from tests.support.core_tests import TESTS, source
from tests.support.equivalent_mutants import Change, reasons, scope_at
from tests.support.program import ROOT

#: of Cosmic Ray's operators those whose mutants are rarely the same program in other words
OPERATORS = (
    *("AddNot", "Delete_Not", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "NumberReplacer", "ExceptionReplacer"),
    *("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ZeroIterationForLoop"),
    *("Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is"),
    *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_Add", "Delete_USub"),
)
_PREFIXES = ("", "ReplaceComparisonOperator_", "ReplaceBinaryOperator_", "ReplaceUnaryOperator_")

#: seconds in which the tests of a module must end, and in which what a test waits for must come
TIMEOUT = 300
TOO_LONG = 20


class DropCall:
    """An operator of our own: a statement that only calls something is left out."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type in ("atom_expr", "power") and node.parent.type == "simple_stmt":
            last = node.children[-1]
            if last.type == "trailer" and last.children[0].value == "(":
                yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Name:
        return Name("pass", node.start_pos, prefix=node.get_first_leaf().prefix)


class Mutant(NamedTuple):
    module: str
    operator: str
    occurrence: int


def _operator(name: str) -> Any:
    if name == "DropCall":
        return DropCall()
    known = set(operator_names())
    (full,) = [each for prefix in _PREFIXES if (each := f"core/{prefix}{name}") in known]
    return get_operator(full)()


def mutants(modules: list[str]) -> list[Mutant]:
    """Every mutant that can be made of them, without those that no test should find."""
    found = []
    for module in modules:
        nodes = list(ast_nodes(get_ast(source(module))))
        for name in ("DropCall", *OPERATORS):
            operator = _operator(name)
            places = [node for node in nodes for _ in operator.mutation_positions(node)]
            found += [
                Mutant(module, name, occurrence)
                for occurrence, node in enumerate(places)
                if not _tunes(node) and not _separates_parameters(node)
            ]
    return found


def _tunes(node: Any) -> bool:
    """Whether it is a number that only tunes: a constant, or the default of a parameter.

    A test that held it to its value would say nothing that the module doesn't say itself.
    """
    if node.type != "number":
        return False
    while (node := node.parent) is not None and node.type != "param":
        if node.type in ("funcdef", "lambdef"):
            return False
    return True


def _separates_parameters(node: Any) -> bool:
    """Whether it is the star before keyword-only parameters, taken for a product."""
    return bool(node.type == "operator" and node.parent.type in ("parameters", "param"))


def mutated(mutant: Mutant) -> str:
    code: str = mutate_code(source(mutant.module), _operator(mutant.operator), mutant.occurrence)
    return code


def compiles(mutant: Mutant) -> bool:
    """Whether it is a program at all: an operator may hit the star between two parameters.

    Nor is it if Cosmic Ray fails to make it: its ExceptionReplacer knows no dotted names in a
    tuple.
    """
    try:
        compile(mutated(mutant), mutant.module, "exec")
    except (SyntaxError, AttributeError):
        return False
    return True


def change(mutant: Mutant) -> Change:
    """What the mutant changes, and where."""
    text = source(mutant.module)
    before, after = text.splitlines(), mutated(mutant).splitlines()
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    first, last = changes[0], changes[-1]
    return Change(
        mutant.module,
        scope_at(text, first[1] + 1),
        "\n".join(before[first[1] : last[2]]),
        "\n".join(after[first[3] : last[4]]),
    )


def diff(mutant: Mutant) -> str:
    """What is changed, as a unified diff without context."""
    before, after = source(mutant.module).splitlines(), mutated(mutant).splitlines()
    path = f"gsocks/{mutant.module}.py"
    return "\n".join(difflib.unified_diff(before, after, path, path, lineterm="", n=0))


class Copy:
    """A copy of the repository in which one mutant at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        files = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        for name in filter(None, files.split("\0")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
        (folder / "tmp").mkdir()

    def failure_of(self, mutant: Mutant) -> str:
        """What fails of the tests of the mutant's module; empty if it survives."""
        path = self._root / "gsocks" / f"{mutant.module}.py"
        path.write_text(mutated(mutant))
        try:
            return self.failure(TESTS[mutant.module].split())
        finally:
            path.write_text(source(mutant.module))

    def failure(self, names: list[str]) -> str:
        """What fails first of the tests in these files; empty if all end well."""
        tests = [f"tests/test_{name}.py" for name in names]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        with (self._root / "tmp" / "printed").open("w") as printed:
            process = self._start(command, printed)
        try:
            if process.wait(TIMEOUT) == 0:
                return ""
        except subprocess.TimeoutExpired:
            return "they don't end"
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has left nothing behind
            process.wait()
        lines = (self._root / "tmp" / "printed").read_text().splitlines()
        return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "they end")

    def _start(self, command: list[str], printed: IO[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=self._root,
            env={
                **os.environ,
                "PYTHONPATH": str(self._root),
                # a mutant of the same size and second as the one before would pass for it
                "PYTHONDONTWRITEBYTECODE": "1",
                "TMPDIR": str(self._root / "tmp"),
                "TESTS_TOO_LONG": str(TOO_LONG),
            },
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run(wanted: list[Mutant], results: Path, processes: int) -> dict[Mutant, bool]:
    """Which of them survive; each is written to ``results`` as soon as it is known."""
    found: dict[Mutant, bool] = {}
    if results.exists():
        for line in results.read_text().splitlines():
            *mutant, survived = json.loads(line)
            found[Mutant(*mutant)] = survived
    left: queue.SimpleQueue[Mutant | str] = queue.SimpleQueue()
    tries = [mutant for mutant in wanted if mutant not in found]
    for name in sorted({name for mutant in tries for name in TESTS[mutant.module].split()}):
        left.put(name)  # of a file of tests, which must pass without a fault
    for mutant in tries:
        left.put(mutant)
    failures: list[Exception] = []
    writing = threading.Lock()

    def work(folder: Path) -> None:
        try:
            copy = Copy(folder)
            while not failures:
                mutant = left.get_nowait()
                began = time.monotonic()
                if isinstance(mutant, str):
                    if failure := copy.failure([mutant]):
                        raise RuntimeError(f"test_{mutant}: without any fault: {failure}")
                    continue
                failure = copy.failure_of(mutant)
                survived = not failure
                with writing, results.open("a") as file:
                    found[mutant] = survived
                    file.write(json.dumps([*mutant, survived]) + "\n")
                    seconds = time.monotonic() - began
                    print(f"{failure or 'SURVIVED'}  ({seconds:.0f} s, {mutant})", flush=True)
        except queue.Empty:
            return
        except Exception as error:  # noqa: BLE001 - raised by the caller
            failures.append(error)

    with tempfile.TemporaryDirectory() as folder:
        threads = []
        for number in range(processes):
            path = Path(folder) / str(number)
            path.mkdir()
            threads.append(threading.Thread(target=work, args=(path,)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return {mutant: found[mutant] for mutant in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutation")
    parser.add_argument("modules", nargs="*", choices=[[], *TESTS], help="left out: all")
    parser.add_argument("--count", type=int, default=300, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=9, help="of the sample")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutation.jsonl")
    options = parser.parse_args()
    options.results.parent.mkdir(exist_ok=True)
    every = mutants(options.modules or list(TESTS))
    random.Random(options.seed).shuffle(every)
    sample = list(islice(filter(compiles, every), options.count))
    outcomes = run(sample, options.results, options.processes)
    print("\n" + report(outcomes))


def report(outcomes: dict[Mutant, bool]) -> str:
    """The survivors, and the mutation score: killed / (sampled - equivalent).

    A mutant that is listed as equivalent, and was killed, counts as killed: its reason is wrong, or
    a test failed for another one.
    """
    lines, known, equivalent = [], reasons(), 0
    for mutant, survived in sorted(outcomes.items()):
        why = known.get(change(mutant).key)
        if survived and why is None:
            lines.append(f"{mutant}\n{diff(mutant)}\n")
        elif survived:
            equivalent += 1
            lines.append(f"{mutant}\n{diff(mutant)}\nEquivalent: {why}\n")
        elif why is not None:
            lines.append(f"{mutant}\n{diff(mutant)}\nKilled, though it is listed: {why}\n")
    sampled, survivors = len(outcomes), sum(outcomes.values()) - equivalent
    killed = sampled - equivalent - survivors
    score = killed / max(1, sampled - equivalent)
    lines.append(
        f"sampled {sampled}, killed {killed}, equivalent {equivalent}, survived {survivors}:"
        f" mutation score {score:.1%}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
