"""Writes the man page and the completions of the shells into share/, from the parser of gsocks.

    python -m release.data_files

The wheel installs them as data files (pyproject.toml), so that they are kept in the repository: a
build in isolation has neither gsocks' dependencies nor what makes them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from unittest import mock

from argparse_manpage.manpage import Manpage

from gsocks import __version__
from gsocks.cli.completion import completion
from gsocks.main import make_parser

ROOT = Path(__file__).parent.parent
SHARE = ROOT / "share"

#: where each shell looks for completions below the prefix
COMPLETIONS = {
    "bash": "bash-completion/completions/gsocks",
    "zsh": "zsh/site-functions/_gsocks",
    "fish": "fish/vendor_completions.d/gsocks.fish",
}


def parser() -> argparse.ArgumentParser:
    """The parser, whose help is as wide in every terminal."""
    with mock.patch.dict(os.environ, COLUMNS="100"):
        return make_parser()


def contents() -> dict[str, str]:
    """Each file's text, by its path below share/."""
    found = {"man/man1/gsocks.1": man_page()}
    for shell, path in COMPLETIONS.items():
        found[path] = completion(parser(), shell)
    return found


def man_page() -> str:
    """gsocks(1)."""
    made = parser()
    with mock.patch.dict(os.environ, COLUMNS="100"):
        page = Manpage(
            made,
            {
                "date": "",
                "project_name": "gsocks",
                "version": __version__,
                "manual_title": "gsocks",
                "description": "an encrypted SOCKS5 tunnel and a rotating proxy",
            },
        )
        page.date = ""  # that of the build would make each another one
        head, mark, rest = str(page).partition(".SH DESCRIPTION\n")
        text, options, rest = rest.partition(".SH OPTIONS\n")
        # the columns of the commands stay as they are
        return f"{head}{mark}.nf\n{text}.fi\n{options}{rest}"


def main() -> None:
    """Write them."""
    for name, text in contents().items():
        path = SHARE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
