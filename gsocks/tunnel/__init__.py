"""Frames over one connection, which carry one stream at a time.

A frame is a sealed header (type, length) and, if the length is not 0, a sealed body; the wire is
docs/protocol.md.  A stream is opened by OPEN, answered by OPENED, and ends by a FIN in each
direction; then the tunnel is as new and carries the next one.  Anything else closes it.

    client: connect_tunnel() -> ClientTunnel     .open(request) -> bound, stream
    server: accept_tunnel()  -> ServerTunnel     .accept() -> request, .succeeded() or .failed()
"""
