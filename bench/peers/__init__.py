"""Other servers beside ours: the same clients, the same work, in the same run.

A peer is an adapter (`peer.Peer`): how its server is started, and a `wire.Wire`: what its clients say. The clients are
the ones of every other scenario, integers in an epoll set; all they know of a protocol is what to send next, what to
wait for, and that a message has a mark and a number in it, so that a client costs the same whatever it speaks.
"""
