"""Many gateways are one: what they share over a Valkey or Redis.

Local tables decide about each request; what changes in them is written to the store behind, in
batches, and told to the other gateways by pub/sub.  Design: docs/adr/0026-fleet.md.

Imported only where ``state.url`` is configured.
"""
