"""What can become of a command besides its answer. Apart from the pipe: who reads a position needs no event loop."""

from __future__ import annotations


class Refused(Exception):
    """Redis answered with an error; the text is Redis's."""


class Unconfirmed(Exception):
    """It was sent, and no answer came: it may or may not have been done."""


class BusDown(Exception):
    """It was not sent: the bus is down. Nobody has received it."""


class Busy(Exception):
    """It was not sent: too many publishes wait for their answers."""
