"""Which way out: the choice of an exit for a request."""
