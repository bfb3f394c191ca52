"""The server on a cluster: all of the contract, over channels in every shard."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import Cluster, one_per_shard
from harness import ROOT, Json, Server, wait_until

from router import vector
from router.slots import slot_of, tags

pytestmark = pytest.mark.xdist_group("cluster")  # one cluster for all of them

SHARDS = 8
CONFIG = """
[[namespace]]
prefix = "few"
history_messages_max = 5

[[namespace]]
prefix = "live"
durable = false
"""
COUNT = 400


def names(prefix: str) -> list[str]:
    return one_per_shard(prefix, SHARDS)


ROOMS = names("room:c")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(replicas=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("config") / "moorage.toml"
    file.write_text(CONFIG)
    with Server(["--workers", "2", "--redis", cluster.url, "--config", str(file)]) as made:
        wait_until(lambda: made.stats()["total"]["ready"] == 2, "both workers are ready")
        yield made


def publish_many(server: Server, channels: list[str], count: int = COUNT) -> None:
    """Publish numbers from 0 on over `channels`, and wait until each is answered."""
    with server.joined("speaker") as speaker:
        sent = [{"op": "publish", "id": n, "channel": channels[n % len(channels)], "data": n} for n in range(count)]
        speaker.send(*sent)
        assert sorted(speaker.expect("published")["id"] for _ in sent) == list(range(count))


def check_complete(heard: list[Json], channels: list[str], count: int = COUNT) -> None:
    """Every channel's messages came once and in order."""
    for index, channel in enumerate(channels):
        mine = [message["data"] for message in heard if message["channel"] == channel]
        assert mine == list(range(index, count, len(channels))), channel


def test_messages_of_every_shard_reach_everybody_on_both_transports(server: Server) -> None:
    lines = [server.joined(f"l{n}", *ROOMS) for n in range(4)]
    events = server.event_client("user=e&" + "&".join(f"channel={room}" for room in ROOMS))
    events.expect("connected")
    publish_many(server, ROOMS)
    for client in lines:
        check_complete(client.messages(COUNT), ROOMS)
    check_complete([events.expect("message") for _ in range(COUNT)], ROOMS)


@pytest.mark.parametrize("cuts", [[], [1], [99, 100, 101], [40, 220, 399]], ids=str)
def test_a_resume_is_exact_over_all_shards_however_often_one_is_cut_off(server: Server, cuts: list[int]) -> None:
    with server.joined("cut", *ROOMS) as client:
        at = client.connected["position"]
    publish_many(server, ROOMS)
    heard: list[Json] = []
    for stop in [*cuts, COUNT]:
        with server.joined("cut", *ROOMS, position=at) as client:
            assert (client.connected["position"], client.connected["recovered"]) == (at, True)
            while len(heard) < stop:
                heard.append(client.expect("message"))
                at = heard[-1]["position"]
    check_complete(heard, ROOMS)


def test_a_stream_resumes_and_what_is_new_comes_behind(server: Server) -> None:
    query = "user=s&" + "&".join(f"channel={room}" for room in ROOMS)
    with server.event_client(query) as client:
        at = client.expect("connected")["position"]
    publish_many(server, ROOMS, 80)
    with server.event_client(query, Last_Event_ID=at) as client:
        assert client.expect("connected")["recovered"] is True
        server.publish(ROOMS[0], "new")
        heard = [client.expect("message") for _ in range(81)]
    assert heard[-1]["data"] == "new"
    check_complete(heard[:-1], ROOMS, 80)
    with server.event_client(query, Last_Event_ID=heard[-1]["position"]) as client:
        assert client.expect("connected")["recovered"] is True
        server.publish(ROOMS[3], "newer")
        assert client.expect("message")["data"] == "newer", "nothing comes twice"


def test_a_subscription_that_begins_in_the_past_can_be_cut_anywhere(server: Server) -> None:
    room, other = names("room:past")[2:4]
    with server.joined("p", other) as client:
        at = client.connected["position"]
        publish_many(server, [room, other], 120)
        client.messages(60)
        client.send({"op": "subscribe", "id": 1, "channel": room, "position": at})
        assert client.expect("subscribed")["recovered"] is True
        heard = client.messages(25)
        at = heard[-1]["position"]
    with server.joined("p", room, other, position=at) as client:
        assert client.connected["recovered"] is True
        heard += client.messages(35)
        server.publish(other, "end")
        assert client.expect("message")["data"] == "end"
    assert [message["data"] for message in heard] == list(range(0, 120, 2))


def test_what_was_trimmed_is_told_by_name_and_the_rest_is_whole(server: Server) -> None:
    few, rooms = names("few:t")[5], names("room:t")
    with server.joined("t", few, *rooms) as client:
        at = client.connected["position"]
    publish_many(server, [few, *rooms], 90)
    with server.joined("t", few, *rooms, position=at) as client:
        assert client.connected["recovered"] is False
        assert client.expect("gap")["channel"] == few
        heard = client.messages(85)
    assert len([message for message in heard if message["channel"] == few]) == 5
    for index, room in enumerate(rooms, 1):
        assert [message["data"] for message in heard if message["channel"] == room] == list(range(index, 90, 9))


def test_a_shard_that_has_lost_its_data_is_told_and_the_others_are_whole(server: Server, cluster: Cluster) -> None:
    rooms = names("room:lost")
    with server.joined("keeper", *rooms) as client:
        publish_many(server, rooms, 16)
        at = client.messages(16)[-1]["position"]
    tag = tags(SHARDS)[3].decode()
    lost = cluster.owner(slot_of(tag.encode())).client
    lost.delete(f"moorage:{{{tag}}}$clock")
    client = server.joined("witness", rooms[3])  # and with that both workers know
    wait_until(lambda: lost.hget(f"moorage:{{{tag}}}$clock", "epoch"), "the shard begins anew")
    publish_many(server, rooms, 16)
    with server.joined("keeper", *rooms, position=at) as client:
        assert client.connected["recovered"] is False
        assert client.expect("gap")["channel"] == rooms[3]
        heard = client.messages(14)
    assert {message["channel"] for message in heard} == {*rooms} - {rooms[3]}


def test_history_is_paged(server: Server) -> None:
    room = names("room:history")[6]
    publish_many(server, [room], 25)
    with server.joined("reader", room) as client:
        found: list[object] = []
        after: dict[str, str] = {}
        client.send({"op": "history", "id": 0, "channel": room, "limit": 25})
        first = client.expect("history")["messages"][0]
        after = {"after": first["position"]}
        while True:
            client.send({"op": "history", "id": 1, "channel": room, "limit": 10, **after})
            answer = client.expect("history")
            found += [message["data"] for message in answer["messages"]]
            if not answer["messages"]:
                break
            after = {"after": answer["position"]}
        assert found == list(range(1, 25))
        status, kept = server.request("GET", f"/api/channels/{room}/history?limit=3", admin=True)
        assert (status, [message["data"] for message in kept["messages"]]) == (200, [22, 23, 24])
        path = f"/api/channels/{room}/history?after={kept['messages'][1]['position']}"
        status, kept = server.request("GET", path, admin=True)
        assert (status, [message["data"] for message in kept["messages"]]) == (200, [24])
        client.send({"op": "history", "id": 1, "channel": room, "after": kept["position"]})
        assert client.expect("history")["messages"] == []


def test_presence_and_disconnect_reach_every_worker(server: Server) -> None:
    room = names("room:presence")[1]
    bob, alices = server.joined("bob", room), [server.joined("alice", room)]
    while len({client.connected["session"].rsplit("-", 1)[0] for client in alices}) < 2:  # the kernel spreads them
        alices.append(server.joined("alice", room))
    there = {"alice": len(alices), "bob": 1}
    bob.send({"op": "presence", "id": 1, "channel": room})
    assert bob.expect("presence")["users"] == there
    status, answer = server.request("GET", f"/api/channels/{room}/presence", admin=True)
    assert (status, answer["users"]) == (200, there)
    status, answer = server.request("POST", "/api/users/alice/disconnect", {}, admin=True)
    assert (status, answer) == (200, {"workers": 2})
    for client in alices:
        client.expect("close", code=4009)
    bob.send({"op": "presence", "id": 2, "channel": "@alice"})
    assert bob.expect("presence")["users"] == {}


def test_an_idempotency_key_is_one_message(server: Server) -> None:
    room = names("room:once")[4]
    listener, speaker = server.joined("l", room), server.joined("s")
    for _ in range(2):
        speaker.send({"op": "publish", "id": 1, "channel": room, "data": "once", "idempotency": "k"})
    speaker.send({"op": "publish", "id": 2, "channel": room, "data": "end"})
    first, again = speaker.expect("published"), speaker.expect("published")
    assert vector.parse(first["position"], SHARDS).of(room.encode()) == vector.parse(again["position"], SHARDS).of(room.encode())  # type: ignore[union-attr]  # fmt: skip
    assert [message["data"] for message in listener.messages(2)] == ["once", "end"]


def test_live_only_and_many_channels_at_once(server: Server) -> None:
    live, rooms = names("live:a")[7], names("room:many")
    client = server.joined("m", live, *rooms)
    body = {"channels": [live, *rooms], "data": "hello"}
    status, answer = server.request("POST", "/api/publish", body, admin=True)
    assert status == 200
    assert answer["positions"][live] is None
    assert {message["channel"] for message in client.messages(9)} == {live, *rooms}


def test_one_pair_of_pipes_per_node_and_worker(server: Server, cluster: Cluster) -> None:
    for master in cluster.masters:
        clients = master.client.client_list()
        pipes = [
            client for client in clients if client["name"].startswith("moorage:") and client["name"] != "moorage:admin"
        ]
        assert len(pipes) == 2 * len(server.workers())
        assert master.client.execute_command("PUBSUB SHARDCHANNELS")
        assert not master.client.execute_command("PUBSUB CHANNELS")


def test_another_number_of_shards_is_refused(
    cluster: Cluster, server: Server, start_server: Callable[..., Server]
) -> None:
    other = start_server("--workers", "1", "--redis", f"{cluster.url}?shards=4", wait=False)
    wanted = "found moorage:$shards = 8 in the cluster, and shards=4 here"
    wait_until(lambda: any(wanted in line for line in other.log), "it says so")
    assert "ready\n" not in other.log


def test_the_rights_that_the_manual_names_are_enough(cluster: Cluster, start_server: Callable[..., Server]) -> None:
    manual = (ROOT / "docs/configuration.md").read_text()
    everywhere = re.search(r"keys and channels below the prefix and `([^`]+)`", manual)
    here = re.search(r"A user there needs `([^`]+)` besides", manual)
    assert everywhere
    assert here
    rights = ["resetkeys", "~moorage:*", "resetchannels", "&moorage:*", "-@all", *f"{everywhere[1]} {here[1]}".split()]
    for member in cluster.members:
        member.client.execute_command("ACL", "SETUSER", "mine", "on", ">hush", *rights)
    server = start_server("--workers", "1", "--redis", cluster.url.replace("://", "://mine:hush@"))
    client = server.joined("a", *ROOMS)
    for room in ROOMS:
        server.publish(room, room)
        client.expect("message", data=room)
    assert server.request("GET", f"/api/channels/{ROOMS[0]}/presence", admin=True)[1]["users"]["a"] == 1


def test_a_prefix_with_braces_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "commands", "serve", "--redis", "redis+cluster://h", "--redis-prefix", "{a}:"]
    found = subprocess.run([*command, "--check-config"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert "found '{a}:', want no braces in a cluster" in found.stderr
