"""What has happened: counters by time, the request log, and what changed lately.

``series``    counters of each exit, user and outcome by 10 s, minute and hour
``requests``  the request log: one row for each request, which can be searched
``log_file``  the same in SQLite
``cells``     what a counter counts, and how several are added up

What has changed lately stands in :mod:`gsocks.events`.

Of several workers each has counters and events of its own; gsocks/admin/history.py asks all of them
and merges what they answer: the numbers of a time add up, events stand in the order of their times.
The request log is one file for all workers, so that any of them can search it for all.
"""
