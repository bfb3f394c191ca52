"""Who may subscribe and publish where: what the namespace allows, narrowed by what the token says."""

from __future__ import annotations

from collections.abc import Callable

from router.namespaces import Namespaces, Policy, personal
from server.auth import Claims


def may_subscribe(namespaces: Namespaces, claims: Claims, channel: str) -> bool:
    """Tell whether `claims` may subscribe to `channel`."""
    match namespaces.of(channel).subscribe:
        case Policy.SIGNED_IN:
            return claims.may_subscribe(channel)
        case Policy.OWNER:
            return channel == personal(claims.user)
        case Policy.MEMBERS:  # those whose token names it
            return claims.subscribe is not None and claims.may_subscribe(channel)
        case _:
            return False


def may_publish(namespaces: Namespaces, claims: Claims, channel: str, *, is_member: Callable[[], bool]) -> bool:
    """Tell whether `claims` may publish to `channel`; `is_member`, asked where it matters, tells who is subscribed to it."""
    match namespaces.of(channel).publish:
        case Policy.SIGNED_IN:
            return claims.may_publish(channel)
        case Policy.MEMBERS:
            return is_member() and claims.may_publish(channel)
        case _:
            return False


def backend_may_publish(namespaces: Namespaces, channel: str) -> bool:
    """Tell whether a backend may publish to `channel` through the admin port."""
    return namespaces.of(channel).publish is not Policy.NOBODY
