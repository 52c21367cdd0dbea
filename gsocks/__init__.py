"""gsocks: an encrypted SOCKS5 tunnel and a rotating proxy on gevent."""

__version__ = "0.1.0"
