"""The admin API of a running service: JSON and metrics, behind a bearer token."""
