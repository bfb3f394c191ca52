"""Load generator and scenarios. Speaks to servers over sockets only."""
