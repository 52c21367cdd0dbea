"""Gateways that share a store beside those that do not: what sharing costs."""
