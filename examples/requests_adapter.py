"""requests through a Gateway, by the adapter of gsocks (extra ``requests``)."""

from gsocks.integrations.requests import SESSION, GatewayAdapter

__all__ = ["SESSION", "GatewayAdapter"]
