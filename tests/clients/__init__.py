"""Client programs tried through gsocks, and the table of docs/clients.md: ``make clients``.

    python -m tests.clients                 all that are here; writes results.json and the table
    python -m tests.clients curl Emacs      these; writes the table with what the others did before

Each client is a row: what it is, how its version is asked for, and a line of bash for each thing
that has to work (``commands.py``, ``scripts.py``, ``serving.py``).  A line has worked if it ended
with status 0, printed what was to be fetched, and gsocks' access log tells of the connection.
What Debian does not have is built by ``make clients`` into ``build/clients`` (``built/``).
"""
