from bench.direct import FIRST_RECEIVER, apart, quantile
from bench.pairs import Member


def member(fd: int, user: int) -> Member:
    return Member(fd, user, ("127.0.0.1", fd))


def test_pairs_are_of_different_workers() -> None:
    senders = [member(fd, fd) for fd in range(4)]
    receivers = [member(fd, FIRST_RECEIVER + fd) for fd in range(4, 8)]
    owners = {("127.0.0.1", fd): fd % 2 for fd in range(8)}
    pairs = apart([*senders, *receivers], owners)
    assert len(pairs) == 4
    assert all(pair.sender % 2 != pair.receiver % 2 for pair in pairs)
    assert len({pair.receiver for pair in pairs}) == 4
    assert pairs[0].channel == f"@u{FIRST_RECEIVER + pairs[0].receiver}"


def test_who_has_nobody_elsewhere_is_left_out() -> None:
    members = [member(1, 1), member(2, FIRST_RECEIVER)]
    assert not apart(members, {("127.0.0.1", 1): 9, ("127.0.0.1", 2): 9})
    assert len(apart(members, {})) == 1


def test_quantiles_are_values_that_were_measured() -> None:
    values = list(range(1, 101))
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 0.999)) == (51, 100, 100)
    assert quantile([7], 0.5) == 7
