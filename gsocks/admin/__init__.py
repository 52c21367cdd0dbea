"""Control and insight while it runs: a JSON API and metrics, behind a bearer token."""
