"""Sockets and time: connecting, listening, relaying bytes by the hub; no proxy protocol."""
