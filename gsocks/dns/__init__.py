"""The DNS as a stub resolver sees it: messages, name servers, resolv.conf and the hosts file.

Why it is in the package: docs/adr/0018-dns-in-greenlets.md.  The cache, and what one client may
cost the others, are in gsocks/net/resolve.py.
"""
