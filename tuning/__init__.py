"""The limits of the kernel that stop a connection server: read, explained, set. Imports nothing of the server."""
