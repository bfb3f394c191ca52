"""`moorage publish`: one message through the admin port of a running server."""

from __future__ import annotations

import argparse
import http.client
import json
import sys
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

from server import config

TIMEOUT_SECONDS = 10.0
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # what listens on every interface is reached on loopback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the channel, the data and where the admin port is."""
    parser.add_argument("channel", metavar="CHANNEL", help="such as room:lobby")
    parser.add_argument("data", metavar="DATA", help="JSON, else taken as a string; - reads it from standard input")
    parser.add_argument("--admin", metavar="URL", help="HOST:PORT or URL (default: 127.0.0.1:7490; MOORAGE_ADMIN)")
    parser.add_argument("--admin-key", metavar="KEY", help="Bearer key (MOORAGE_ADMIN_KEY)")
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (default: {config.FILE}; MOORAGE_CONFIG)")


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Publish and print the position; 1 when the server did not take it."""
    try:
        options = config.load({}, environ, args.config)
        base = admin_url(args.admin) if args.admin else admin_url(str(options.admin))
        data = read_data(sys.stdin.read() if args.data == "-" else args.data)
        print(publish(base, args.admin_key or options.admin_key, args.channel, data))
    except (config.ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except PublishError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


class PublishError(Exception):
    """The server could not be reached, or did not do what was asked."""


class NotThere(PublishError):
    """Nothing listens where the admin port should be."""


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


def read_data(text: str) -> object:
    """Return the JSON value in `text`, or `text` itself where it is none."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text.removesuffix("\n")


def publish(base: str, key: str | None, channel: str, data: object) -> str:
    """Publish `data` and return its position.

    Raises: PublishError, with what went wrong and what to do about it.
    """
    body = json.dumps({"channel": channel, "data": data}).encode()
    return _position(base, *exchange(base, key, "POST", "/api/publish", body))


def exchange(base: str, key: str | None, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Send one request to the admin port at `base`; return status and body of the answer.

    Raises: PublishError when there is no answer, NotThere when nobody listens.
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
        raise PublishError(f"{base}: {error or type(error).__name__}") from None
    finally:
        connection.close()


def _position(base: str, status: int, answer: bytes) -> str:
    try:
        return str(answered(base, status, answer)["position"])
    except KeyError:
        raise _stranger(base, status) from None


def answered(base: str, status: int, answer: bytes, undone: str = "not published") -> dict[str, Any]:
    """Return the JSON object of a good answer.

    Raises: PublishError with the server's own reason behind `undone`, or that this is no admin port.
    """
    try:
        parsed = json.loads(answer)
        if status == http.client.OK and isinstance(parsed, dict):
            return parsed
        error = parsed["error"]
        refusal = f"{error['code']} {error['reason']}"
    except (ValueError, KeyError, TypeError):
        raise _stranger(base, status) from None
    hint = "; say --admin-key" if status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN} else ""
    raise PublishError(f"{undone}: {refusal}{hint}")


def _stranger(base: str, status: int) -> PublishError:
    return PublishError(f"{base} answered {status}, not as an admin port does: look at --admin")
