"""The load: a target that serves, and clients that ask, on as few instructions as can be.

Bulk is sent with sendfile from memory and received with MSG_TRUNC, which lets the kernel drop
what was received instead of copying it.  Many sockets are served from one thread by epoll.  That
it is not the bottleneck shows in the results: the contender "none" is this load by itself.
"""
