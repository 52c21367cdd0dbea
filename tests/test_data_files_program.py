"""share/: what the wheel installs beside the package is what the parser says now."""

from __future__ import annotations

import pytest

from release.data_files import SHARE, contents
from tests.support.program import run

CONTENTS = contents()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_data_file_is_as_the_parser_makes_it(name: str) -> None:
    assert (SHARE / name).read_text() == CONTENTS[name], "make data writes it"


def test_bash_reads_the_completions_and_completes_a_command() -> None:
    script = SHARE / "bash-completion" / "completions" / "gsocks"
    ask = (
        f"source {script}; COMP_WORDS=(gsocks doc); COMP_CWORD=1; "
        "complete -p gsocks | sed 's/.*-F \\([^ ]*\\).*/\\1/' | { read f; "
        '$f; echo "${COMPREPLY[@]}"; }'
    )
    assert "doctor" in run("bash", "-c", ask).stdout.split()
