"""Who has joined and who has left, as one worker sees it. Time is an argument."""

from __future__ import annotations

import pytest

from router.roster import GRACE_SECONDS, YOUNG_SECONDS_MAX, News, Roster

LATER = YOUNG_SECONDS_MAX  # when it is known who was there before
ONE, OTHER = "$reply:1", "$reply:2"


@pytest.fixture
def roster() -> Roster:
    return Roster(b"room:a", 0.0, lambda _roster: None)


def names(*found: set[str]) -> tuple[list[str], ...]:
    return tuple(sorted(each) for each in found)


def test_who_comes_here_joins_and_who_goes_leaves_after_a_grace(roster: Roster) -> None:
    roster.enter("alice")
    roster.enter("bob")
    assert names(*roster.take(1)) == (["alice", "bob"], [])
    assert roster.news(1) == ({"alice", "bob"}, set())
    roster.leave("bob")
    assert names(*roster.take(2)) == ([], ["bob"])
    assert not roster.has_news(2 + GRACE_SECONDS - 0.1)
    assert roster.news(2 + GRACE_SECONDS) == (set(), {"bob"})
    assert not roster.is_restless


def test_a_second_connection_is_nothing_new(roster: Roster) -> None:
    roster.enter("alice")
    roster.take(1)
    roster.enter("alice")
    roster.leave("alice")
    assert not roster.is_changed
    assert roster.here == {"alice": 1}


def test_coming_and_going_before_anybody_was_told_is_nothing(roster: Roster) -> None:
    roster.enter("alice")
    roster.leave("alice")
    assert not roster.is_changed
    roster.enter("bob")
    roster.take(1)
    roster.leave("bob")
    roster.enter("bob")
    assert not roster.is_changed
    assert roster.published() == {"bob"}


def test_the_others_know_what_was_published_and_no_more(roster: Roster) -> None:
    for user in ("alice", "bob"):
        roster.enter(user)
    roster.take(1)
    roster.leave("alice")
    roster.enter("carol")
    assert roster.published() == {"alice", "bob"}


def test_who_was_there_before_does_not_join(roster: Roster) -> None:
    roster.enter("alice")
    roster.take(0.1)
    roster.awaited = 1
    assert roster.is_young(0.1), "nobody is told yet"
    assert roster.answered(ONE, 7, 3, {"alice", "bob"}, 0.2)
    assert not roster.is_young(0.2)
    assert not roster.has_news(0.2), "alice is on another worker too"
    roster.hear(ONE, 7, 4, {"carol"}, {"bob"}, 0.3)
    assert roster.news(0.3) == ({"carol"}, set())
    assert roster.news(0.3 + GRACE_SECONDS) == (set(), {"bob"})


def test_who_comes_between_the_beginning_and_the_answer_joins(roster: Roster) -> None:
    """Alice has asked for presence by then, and bob was not in it."""
    roster.enter("alice")
    roster.take(0.1)
    assert not roster.hear(ONE, 7, 4, {"bob"}, {"zoe"}, 0.2), "who was there before is not known"
    assert roster.answered(ONE, 7, 4, {"bob", "carol"}, 0.3)
    assert roster.news(LATER) == ({"alice", "bob"}, set())
    assert roster.fellows[ONE].users == {"bob", "carol"}


def test_nobody_is_young_for_long(roster: Roster) -> None:
    roster.awaited = 5
    assert roster.is_young(LATER - 0.1)
    assert not roster.is_young(LATER)


def test_moving_between_workers_is_neither(roster: Roster) -> None:
    roster.greeted(ONE, 7, 1, {"alice"}, LATER)
    assert roster.news(LATER) == ({"alice"}, set())
    roster.greeted(OTHER, 8, 1, {"alice"}, LATER)
    roster.hear(ONE, 7, 2, set(), {"alice"}, LATER)
    assert not roster.is_restless
    roster.hear(OTHER, 8, 2, set(), {"alice"}, LATER)
    roster.enter("alice")  # one moment later, here
    roster.take(LATER + GRACE_SECONDS / 2)
    assert not roster.is_restless


def test_what_is_not_published_yet_is_yet_to_happen(roster: Roster) -> None:
    """One join, whatever comes first: that she is here too, or that she is there."""
    roster.enter("alice")
    roster.hear(ONE, 7, 1, {"alice"}, set(), LATER)
    roster.take(LATER)
    assert roster.news(LATER) == ({"alice"}, set())
    roster.enter("bob")
    roster.hear(ONE, 7, 2, {"bob"}, set(), LATER)
    assert roster.news(LATER) == ({"bob"}, set())
    roster.hear(ONE, 7, 3, set(), {"bob"}, LATER)
    roster.take(LATER + 1)
    assert not roster.is_restless


def test_joining_and_leaving_before_anybody_is_told_is_nothing(roster: Roster) -> None:
    roster.greeted(ONE, 7, 1, {"alice", "bob"}, LATER)
    roster.hear(ONE, 7, 2, set(), {"bob"}, LATER)
    assert roster.news(LATER + GRACE_SECONDS) == ({"alice"}, set())


def test_a_number_that_is_missing_is_asked_for(roster: Roster) -> None:
    roster.greeted(ONE, 7, 1, {"alice"}, LATER)
    roster.news(LATER)
    assert not roster.hear(ONE, 7, 3, {"carol"}, set(), LATER)
    assert not roster.hear(ONE, 7, 4, {"dave"}, set(), LATER)
    assert not roster.answered(ONE, 7, 3, {"bob", "carol"}, LATER), "an answer from before the newest change"
    assert roster.answered(ONE, 7, 4, {"bob", "carol", "dave"}, LATER)
    assert roster.news(LATER) == ({"bob", "carol", "dave"}, set())
    assert roster.news(LATER + GRACE_SECONDS) == (set(), {"alice"})
    assert roster.hear(ONE, 7, 4, {"dave"}, set(), LATER), "again"
    assert roster.answered(ONE, 7, 2, {"alice"}, LATER), "an answer that is late"
    assert roster.fellows[ONE].users == {"bob", "carol", "dave"}


def test_the_users_of_a_dead_worker_leave_but_for_those_who_are_elsewhere(roster: Roster) -> None:
    roster.enter("here")
    roster.take(LATER)
    roster.greeted(ONE, 7, 1, {"here", "there", "gone", "back"}, LATER)
    roster.greeted(OTHER, 8, 1, {"there"}, LATER)
    roster.news(LATER)
    roster.lose(ONE, 10)
    roster.hear(OTHER, 8, 2, {"back"}, set(), 11)
    assert not roster.has_news(10 + GRACE_SECONDS - 0.1)
    assert roster.news(10 + GRACE_SECONDS) == (set(), {"gone"})
    assert roster.news(99) == (set(), set())


def test_another_life_of_a_worker_is_another_worker(roster: Roster) -> None:
    roster.greeted(ONE, 7, 9, {"alice", "bob"}, LATER)
    roster.news(LATER)
    roster.greeted(ONE, 8, 1, {"bob"}, 10)
    assert roster.news(10 + GRACE_SECONDS) == (set(), {"alice"})
    assert roster.fellows[ONE].life == 8


def test_a_worker_that_has_nobody_is_forgotten(roster: Roster) -> None:
    roster.greeted(ONE, 7, 1, {"alice"}, LATER)
    roster.hear(ONE, 7, 2, set(), {"alice"}, LATER)
    roster.answered(OTHER, 8, 0, set(), LATER)
    assert roster.fellows == {}
    roster.lose(ONE, LATER)
    assert roster.news(LATER + GRACE_SECONDS) == News(set(), set())
