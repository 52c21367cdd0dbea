"""The log: one line for each connection, which no client can forge."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO

import pytest

from gsocks.observe import (
    AccessLog,
    JsonFormatter,
    NullObserver,
    Record,
    TextFormatter,
    new_connection_id,
    no_trace,
    trace_of,
)

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Log(StringIO):
    """What a handler of the logger ``gsocks`` has written."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.handler = logging.StreamHandler(self)
        self.handler.setFormatter(formatter)

    @property
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    formatter = getattr(request, "param", TextFormatter)()
    logger, log = logging.getLogger("gsocks"), Log(formatter)
    level = logger.level
    logger.addHandler(log.handler)
    logger.setLevel(logging.INFO)
    yield log
    logger.removeHandler(log.handler)
    logger.setLevel(level)


in_text = pytest.mark.parametrize("log", [TextFormatter], indirect=True)
in_json = pytest.mark.parametrize("log", [JsonFormatter], indirect=True)
in_both = pytest.mark.parametrize("log", [TextFormatter, JsonFormatter], indirect=True)


def record(**fields: object) -> Record:
    made = Record("local", "192.0.2.7:5000", "c1a2-17")
    made.outcome = "ok"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@in_text
def test_a_connection_is_one_line_of_what_a_person_looks_for(log: Log) -> None:
    AccessLog().ended(record(dest="example.com:443", exit="direct", user="alice", up=5, down=7))
    (line,) = log.lines
    time, level, logger, *fields = line.split(" ")
    assert TIME.fullmatch(time)
    assert (level, logger) == ("info", "gsocks.access:")
    seconds = fields.pop(8)
    assert re.fullmatch(r"seconds=\d+\.\d+", seconds)
    assert fields == [
        "id=c1a2-17",
        "inbound=local",
        "client=192.0.2.7:5000",
        "user=alice",
        "dest=example.com:443",
        "exit=direct",
        "up=5",
        "down=7",
        "outcome=ok",
    ]


@in_text
def test_a_routine_connection_is_a_line_of_debug_level_only(log: Log) -> None:
    routine = record(outcome="client_gone", is_routine=True)
    AccessLog().ended(routine)
    assert log.lines == []
    logging.getLogger("gsocks").setLevel(logging.DEBUG)
    AccessLog().ended(routine)
    assert " debug gsocks.access: id=c1a2-17 " in log.lines[0]


@in_text
def test_what_is_not_known_is_a_dash(log: Log) -> None:
    AccessLog().ended(record(outcome="client_gone", detail="hung up"))
    assert " user=- dest=- exit=- " in log.lines[0]
    assert log.lines[0].endswith(' outcome=client_gone detail="hung up"')


NASTY = [
    "two words",
    'quo"ted',
    "back\\slash",
    "equals=sign",
    "new\nline inbound=local user=root outcome=ok",
    "carriage\rreturn",
    "\x1b[2Jterminal",
    "nul\0",
    "separator\u2028line",
    "\x85next",
    "übermut",
    "lone\udcffsurrogate",
    "",
]


@in_text
@pytest.mark.parametrize("name", NASTY)
def test_no_name_can_forge_a_line_or_a_field(log: Log, name: str) -> None:
    AccessLog().ended(record(user=name, dest=name, detail=name))
    (line,) = log.lines
    assert line.isascii()
    assert line.isprintable()
    message = line.partition("gsocks.access: ")[2]
    pattern = r'(\w+)=("(?:[^"\\]|\\.)*"|[^ "=\\]*)(?: |$)'
    fields = dict(re.findall(pattern, message))
    assert re.sub(pattern, "", message) == "", "there is something between the fields"
    assert list(fields)[:5] == ["id", "inbound", "client", "user", "dest"]
    told = json.loads(fields["user"]) if fields["user"][:1] == '"' else fields["user"]
    assert told == (name or "-")
    assert fields["outcome"] == "ok"


@in_json
@pytest.mark.parametrize("name", NASTY)
def test_in_json_each_line_is_one_object_with_the_same_fields(log: Log, name: str) -> None:
    AccessLog().ended(record(user=name, up=5))
    (line,) = log.lines
    told = json.loads(line)
    assert TIME.fullmatch(told.pop("time"))
    assert (told.pop("level"), told.pop("logger")) == ("info", "gsocks.access")
    assert told.pop("seconds") >= 0
    assert told == {
        "id": "c1a2-17",
        "inbound": "local",
        "client": "192.0.2.7:5000",
        "user": name or "-",
        "dest": "-",
        "exit": "-",
        "up": 5,
        "down": 0,
        "outcome": "ok",
    }


@in_json
def test_in_json_a_message_is_one_object_too(log: Log) -> None:
    logging.getLogger("gsocks.pool").warning("no tunnel: %s", 'the "reason"\nin two lines')
    (line,) = log.lines
    told = json.loads(line)
    assert TIME.fullmatch(told.pop("time"))
    assert told == {
        "level": "warning",
        "logger": "gsocks.pool",
        "message": 'no tunnel: the "reason"\nin two lines',
    }


@in_text
def test_a_message_of_several_lines_is_one_line(log: Log) -> None:
    logging.getLogger("gsocks.pool").warning("no tunnel: %s", "one\ntwo\r\x1b[2J")
    (line,) = log.lines
    assert line.endswith(r" warning gsocks.pool: no tunnel: one\ntwo\r\x1b[2J")


@in_both
def test_the_traceback_of_a_fault_is_told(log: Log) -> None:
    try:
        raise ZeroDivisionError("our fault")
    except ZeroDivisionError:
        logging.getLogger("gsocks.inbound").exception("it failed")
    assert "it failed" in log.getvalue()
    assert "our fault" in log.getvalue()
    assert "test_observe.py" in log.getvalue()


@in_json
def test_in_json_a_traceback_is_part_of_the_object(log: Log) -> None:
    try:
        raise ZeroDivisionError("our fault")
    except ZeroDivisionError:
        logging.getLogger("gsocks.inbound").exception("it failed")
    (line,) = log.lines
    assert json.loads(line)["message"] == "it failed"
    assert json.loads(line)["traceback"].endswith("ZeroDivisionError: our fault")


@in_both
def test_nothing_is_logged_nor_worked_out_when_the_level_is_off(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("gsocks").setLevel(logging.WARNING)
    monkeypatch.setattr(Record, "fields", lambda _: pytest.fail("computed without a reader"))
    AccessLog().ended(record())
    assert log.lines == []


def test_a_record_is_shown_by_its_id_and_its_way() -> None:
    assert repr(record(dest="example.com:443", exit="direct")) == (
        "<Record c1a2-17 local: 192.0.2.7:5000 to example.com:443 by direct, ok>"
    )
    assert repr(record(outcome="")) == "<Record c1a2-17 local: 192.0.2.7:5000 to - by -, active>"


# --- the life of a connection -----------------------------------------------------------------


def test_ids_are_never_the_same_and_name_the_process() -> None:
    ids = [new_connection_id() for _ in range(1000)]
    assert len(set(ids)) == len(ids)
    assert {each.partition("-")[0] for each in ids} == {f"{os.getpid():x}"}


def test_a_forked_process_has_ids_of_its_own() -> None:
    source = (
        "import os\n"
        "from gsocks.observe import new_connection_id\n"
        "child = os.fork()\n"
        "if child: os.waitpid(child, 0)\n"
        "print(f'{os.getpid():x}', new_connection_id())\n"
    )
    said = subprocess.run([sys.executable, "-c", source], stdout=subprocess.PIPE, check=True)
    lines = [line.split() for line in said.stdout.decode().splitlines()]
    assert len(lines) == 2
    for process, connection_id in lines:
        assert connection_id == f"{process}-1"


@in_text
def test_a_trace_writes_debug_lines_under_the_id(log: Log) -> None:
    logging.getLogger("gsocks").setLevel(logging.DEBUG)
    trace_of("c1a2-17")("accepted from %s", "192.0.2.7:5000")
    (line,) = log.lines
    assert line.endswith(" debug gsocks.connection: c1a2-17 accepted from 192.0.2.7:5000")


@in_json
def test_in_json_a_debug_line_has_the_id_as_a_field(log: Log) -> None:
    logging.getLogger("gsocks").setLevel(logging.DEBUG)
    trace_of("c1a2-17")("closed")
    told = json.loads(log.lines[0])
    assert (told["id"], told["message"]) == ("c1a2-17", "c1a2-17 closed")


@in_both
def test_above_debug_a_trace_is_nothing(log: Log) -> None:
    assert trace_of("c1a2-17") is no_trace
    no_trace("exit %s failed", "berlin")
    assert log.lines == []


def test_the_null_observer_does_nothing() -> None:
    NullObserver().ended(record())


def test_a_record_tells_how_long_it_took() -> None:
    made = record()
    made.start -= 2
    assert 2 <= float(made.fields()["seconds"]) < 60


@in_text
def test_the_time_is_utc_with_milliseconds(log: Log) -> None:
    entry = logging.LogRecord("gsocks", logging.INFO, "", 0, "x", (), None)
    entry.created = 1_769_860_800.0625
    assert TextFormatter().format(entry) == "2026-01-31T12:00:00.062Z info gsocks: x"
    assert json.loads(JsonFormatter().format(entry))["time"] == "2026-01-31T12:00:00.062Z"
