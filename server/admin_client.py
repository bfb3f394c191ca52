"""The admin port from outside, for commands: where it is, one request, and what is said of its answer."""

from __future__ import annotations

import argparse
import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from server import config
from server.close import said

TIMEOUT_SECONDS = 10.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what listens on every interface is reached on loopback


class AdminError(Exception):
    """The server could not be reached, or did not do what was asked."""


class NotThere(AdminError):
    """Nothing listens where the admin port should be."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add where the admin port is, and what opens it."""
    parser.add_argument("--admin", metavar="URL", help="HOST:PORT or URL (default: 127.0.0.1:7490; MOORAGE_ADMIN)")
    add_key_arguments(parser)


def add_key_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what opens it, and the file that may say both."""
    parser.add_argument("--admin-key", metavar="KEY", help="Bearer key (MOORAGE_ADMIN_KEY)")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (default: {config.FILE}; MOORAGE_CONFIG)")


def named(args: argparse.Namespace, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the base URL and the key that the arguments, the environment or the file name. Raises: ConfigError, ValueError."""
    options = config.load({}, environ, args.config)
    return admin_url(args.admin or str(options.admin)), args.admin_key or options.admin_key


def admin_url(text: str) -> str:
    """Return the base URL of the admin port given as HOST:PORT or URL.

    Raises: ValueError, with what was found and what is wanted.
    """
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"--admin: found {text!r}, want http://HOST:PORT or https://HOST:PORT")
        return text.rstrip("/")
    try:
        address = config.Address.parse(text)
    except ValueError as wanted:
        raise ValueError(f"--admin: found {text!r}, want {wanted}") from None
    if not address.port:
        raise ValueError(f"--admin: found {text!r}, want the port the server said it listens on")
    return f"http://{address._replace(host=ANYWHERE.get(address.host, address.host))}"


def exchange(base: str, key: str | None, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request to the admin port at `base`; return status and body of the answer.

    Raises: AdminError when there is no answer, NotThere when nobody listens.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    parts = urlsplit(base)
    connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, parts.path + path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionRefusedError:
        raise NotThere(f"nothing listens on {base}: start the server (moorage serve), or say --admin") from None
    except (OSError, http.client.HTTPException) as error:
        raise AdminError(f"{base}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def answered(base: str, status: int, answer: bytes, undone: str) -> dict[str, Any]:
    """Return the JSON object of a good answer.

    Raises: AdminError with the server's own reason behind `undone`, or that this is no admin port.
    """
    try:
        parsed = json.loads(answer)
        if status == http.client.OK and isinstance(parsed, dict):
            return parsed
        error = parsed["error"]
        refusal = said(error)
    except (ValueError, KeyError, TypeError):
        raise stranger(base, status) from None
    hint = "; say --admin-key" if status == http.client.UNAUTHORIZED else ""
    raise AdminError(f"{undone}: {refusal}{hint}")


def stranger(base: str, status: int) -> AdminError:
    """Return the error that says: this is no admin port."""
    return AdminError(f"{base} answered {status}, not as an admin port does: look at --admin")
