"""What a channel's name says about it: whether it is one at all, and whose it is."""

from __future__ import annotations

NAME_BYTES_MAX = 255
USER_BYTES_MAX = NAME_BYTES_MAX - 1  # "@" + user is a channel


def channel_fault(name: str) -> str | None:
    """Say what is wrong with a channel's name; None when nothing is.

    A name is 1 to 255 bytes of printable UTF-8 without a space or control character.
    """
    return _fault(name, NAME_BYTES_MAX)


def user_fault(name: str) -> str | None:
    """Say what is wrong with a user's name; None when nothing is.

    The rules of a channel's name, one byte shorter, because `personal(name)` has to be a channel.
    """
    return _fault(name, USER_BYTES_MAX)


def personal(user: str) -> str:
    """Return the channel every connection of `user` is subscribed to."""
    return "@" + user


def _fault(name: str, bytes_max: int) -> str | None:
    # str.isprintable() is false for control characters, surrogates and every white space but " " itself. It goes
    # first: a lone surrogate has no length in UTF-8.
    if not name.isprintable() or " " in name:
        at = next(i for i, character in enumerate(name) if character == " " or not character.isprintable())
        return f"U+{ord(name[at]):04X} at character {at}, want printable characters without spaces"
    size = len(name) if name.isascii() else len(name.encode())
    return None if 0 < size <= bytes_max else f"{size} bytes, want 1 to {bytes_max}"
