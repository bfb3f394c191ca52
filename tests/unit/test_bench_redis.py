from bench.redis import Calls, command_stats, parse, since
from router.embedded import Embedded

INFO = (
    "# Commandstats\r\n"
    "cmdstat_get:calls=21,usec=175,usec_per_call=8.33,rejected_calls=0\r\n"
    "cmdstat_client|setname:calls=2,usec=3\r\n"
)


def test_commands_are_counted() -> None:
    assert parse(INFO) == {"get": Calls(21, 175), "client|setname": Calls(2, 3)}
    assert since({"get": Calls(5, 9), "set": Calls(1, 1)}, {"get": Calls(5, 9)}) == {"set": Calls(1, 1)}


def test_a_real_server_is_asked() -> None:
    with Embedded() as server:
        before = command_stats(server.url)
        after = command_stats(server.url)
    assert since(after, before)["info"].calls == 1
