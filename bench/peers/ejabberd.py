"""ejabberd: chat over XMPP, in Erlang, one process with a scheduler a core."""

from __future__ import annotations

import base64
import glob
from dataclasses import dataclass
from pathlib import Path

from bench.clients import raise_descriptor_limit
from bench.peers.peer import Peer, Program, absent, found, free_port, said
from bench.peers.wire import Step, Wire

# Users need no account and no password, as ours do not in open mode. No module but what a message to all takes.
CONFIG = """\
hosts: ["bench"]
loglevel: error
auth_method: anonymous
anonymous_protocol: login_anon
disable_sasl_mechanisms: ["X-OAUTH2"]
listen:
  - port: {port}
    ip: "127.0.0.1"
    module: ejabberd_c2s
    backlog: 65535
    shaper: none
    access: all
modules:
  mod_adhoc: {{}}
  mod_announce:
    access: all
"""
_OPEN = (
    b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to='bench' version='1.0'>"
)
_FEATURES = b"</stream:features>"
_AUTH = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%b</auth>"
_BIND = b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>"


@dataclass(frozen=True, slots=True)
class Xmpp(Wire):
    """RFC 6120: SASL PLAIN, a bound resource, presence. The room is everybody who is online (XEP-0133, announce).

    A room of XEP-0045 would be the usual way, but takes time that is quadratic in its members: 4,000 of them were not
    back within 90 s after all had left at once, with presence among members switched off.
    """

    refusals = (b"<failure", b"<stream:error", b"type='error'")

    def subscribe(self, user: str, room: str) -> tuple[Step, ...]:
        """Sign in and become available."""
        return (*self._sign_in(user), Step(b"<presence/>", b"<presence"))

    def speak(self, user: str, room: str) -> tuple[Step, ...]:
        """Do the same."""
        return self.subscribe(user, room)

    def _sign_in(self, user: str) -> tuple[Step, ...]:
        secret = base64.b64encode(b"\0%b\0-" % user.encode())
        return (
            Step(_OPEN, _FEATURES),
            Step(_AUTH % secret, b"<success"),
            Step(_OPEN, _FEATURES),
            Step(_BIND, b"</iq>"),
        )

    def to_room(self, room: str, message: bytes) -> bytes:
        """Send to all who are online; the sender has it back like everybody else."""
        return b"<message type='headline' to='bench/announce/online'><body>%b</body></message>" % message

    def to_user(self, user: str, message: bytes) -> bytes:
        """Send to a user, which is not answered."""
        return b"<message type='chat' to='%b@bench'><body>%b</body></message>" % (user.encode(), message)


class Ejabberd(Peer):
    """Started without distribution, so that it needs no name and no port mapper."""

    name = "ejabberd"
    about = "XMPP server (Erlang), 1 process, a scheduler a core"
    wire = Xmpp()

    def missing(self) -> str | None:
        """Return why it cannot run here."""
        return absent("erl", package="erlang-base") or (
            None if _library() else "not installed: ejabberd (Debian: ejabberd)"
        )

    def versions(self) -> dict[str, str]:
        """Return the versions of it and of Erlang."""
        code = "io:format(erlang:system_info(otp_release)), halt()."
        library = _library() or ""
        return {
            "ejabberd": library.rpartition("ejabberd-")[2] or "unknown",
            "erlang": said(r"(\d+)", found("erl") or "", "-noshell", "-eval", code),
        }

    def start(self, workers: int, home: Path) -> Program:
        """Start it with as many schedulers as there are to be workers, and kernel poll as Erlang has it by default."""
        port = free_port()
        (home / "ejabberd.yml").write_text(CONFIG.format(port=port))
        limit = str(raise_descriptor_limit())
        library = _library() or ""
        command = [
            found("erl") or "", "+K", "true", "+P", "1000000", "+Q", limit, "+S", f"{workers}:{workers}", "-noinput",
            "-mnesia", "dir", f'"{home}/mnesia"', "-ejabberd", "log_path", f'"{home}/ejabberd.log"', "-s", "ejabberd",
        ]  # fmt: skip
        environ = {
            "HOME": str(home),
            "ERL_LIBS": str(Path(library).parent),
            "ERL_MAX_PORTS": limit,
            "ERL_CRASH_DUMP_BYTES": "0",
            "EJABBERD_CONFIG_PATH": str(home / "ejabberd.yml"),
        }
        return Program(command, home, port, environ)


def _library() -> str | None:
    found_ones = glob.glob("/usr/lib/*/ejabberd-*/ebin") + glob.glob("/usr/lib/ejabberd-*/ebin")
    return str(Path(found_ones[0]).parent) if found_ones else None
