"""HTTP/1.1 as the clients of a proxy speak it (RFC 9110, RFC 9112): CONNECT and absolute URLs.

    Client.read_request()     the head of the next request, refused if it can be read in two ways
    target(request)           where it wants to go: dest, and what to ask for there
    log_in(request, ...)      who asks
    Exchange(...).run()       one request to its origin server, and the answer back
    Client.failed(error)      what the proxy says itself

A client's connection carries request after request, each to whatever host it names.  Each takes a
way of its own, so that exits rotate by request.  The connection to the origin server is therefore
used for one request only, and is told so (``Connection: close``); the client's stays open.
"""
