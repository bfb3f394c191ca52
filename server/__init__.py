"""What one process of the server is: sockets, sessions, codecs, permissions, counters."""
