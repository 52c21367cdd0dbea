"""Tries another implementation of docs/protocol.md: ``python -m tests.conformance HOST:PORT``.

It knows the document and nothing of gsocks, and needs Python and PyNaCl alone.
"""
