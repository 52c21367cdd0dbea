"""Two builds of gsocks beside each other: what a commit changes in CPU time and memory.

    python -m bench.compare BASE [NEW]    two git revisions; NEW is the working tree by default
    make bench-compare BASE=REV [NEW=REV] [ARGS=--counts]

builds.py     a revision, checked out and started with this interpreter and its dependencies
measures.py   what is measured, in turns A B B A
counts.py     instructions of user code, under valgrind
table.py      medians, ratios, the table for a commit message

The compared builds are known by their command line and their config file alone; no module of
theirs is imported.
"""
