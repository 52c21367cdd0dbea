"""Coverage-guided fuzzing of every grammar that a stranger reaches.

    make fuzz                       every target for FUZZ_SECONDS, from seeds that code makes
    python -m fuzz socks5           one of them; --seconds 600 for longer
    python -m fuzz socks5 FILE      what it says to one input, as a crash leaves it

A target is a module with ``check(data)``, which returns if all is well and raises if not;
``SEEDS``, from which the fuzzer starts; and ``WORDS`` that it may put together.  What each of them
holds the parser to:

- whatever is said, it ends: at the latest when the other end falls silent;
- nothing but an error of gsocks comes of it;
- what is accepted means what a small model of the grammar, made apart from gsocks, reads in it;
- it makes no difference in which pieces it comes.

The sockets are in memory (wire.py).  tests/test_fuzz.py shows that each target holds for its seeds
and for changes of them, and that it notices a parser with a fault.
"""
