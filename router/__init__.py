"""How a message finds its subscribers: the table, the carousel, the bus. Knows nothing of sockets."""
