"""A server of several processes at one address, which look like one.

The supervisor starts the workers, each a `Server` of its own, accepts the connections of HTTP, and hands
each to the next worker in turn. Left to accept for themselves, one of them would take most of those that come
at once, and what waited for one that ends would be lost. gRPC opens its own sockets, and its connections are
spread over them by the kernel (``SO_REUSEPORT``). A worker that ends, or hangs, is replaced.

Workers are new interpreters and no forks: threads, event loops, gRPC and OpenMP do not survive a fork, and
who starts a server from Python may have any of them, as the supervisor has when it replaces a worker. What is
large, the weights, is mapped from files, and shared in either case.

A pair of sockets joins the supervisor to each worker. What concerns all of them goes through it: loading,
unloading, readiness, numbers, log entries, the end. A worker whose supervisor is gone ends.
"""
