"""The tests of gsocks."""
