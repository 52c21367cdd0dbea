"""The message codec of HTTP/1.1 (RFC 9110, RFC 9112) for a proxy: CONNECT and absolute URLs.

``find_end`` and ``target`` (head.py) delimit and interpret the head of a request; ambiguous heads
are refused.  ``to_origin`` and ``to_client`` (forward.py) change what a proxy has to change;
message.py reads plain heads, and h11 all others; write.py makes bytes of messages.  ``Origin``
(origin.py) sends one request over a stream and receives its response; ``answer_for`` (status.py)
is the response to an error of the proxy itself.

A client's connection carries request after request, each to any host, and each may take another
exit.  What says when a connection to an origin server or to a proxy may carry another request is in
persistence.py; where it may not, the request announces that (``Connection: close``).
"""
