"""The table of client programs is what ``make clients`` saw."""

from __future__ import annotations

import pytest

from tests.clients import commands, scripts, serving_clients
from tests.clients.client import CLIENTS
from tests.clients.scene import filled
from tests.clients.table import DOCUMENT, Row, read, written

ADD_THEIR_ROWS = (commands, scripts, serving_clients)


def test_the_document_has_the_table_of_the_last_run() -> None:
    text = DOCUMENT.read_text()
    assert written(text, read()) == text


def test_sixty_clients_or_more_were_run_and_each_can_be_run_again() -> None:
    names = [row.name for row in read()]
    assert len(names) >= 60
    assert set(names) <= set(CLIENTS)


@pytest.mark.parametrize("row", read(), ids=lambda row: row.name)
def test_all_that_is_tried_of_a_client_works(row: Row) -> None:
    assert row.works == list(CLIENTS[row.name].lines)


def test_only_words_of_ours_are_filled_in() -> None:
    assert filled("{port} ${x} {a: 1} {PORT}", {"port": "1"}) == "1 ${x} {a: 1} {PORT}"
