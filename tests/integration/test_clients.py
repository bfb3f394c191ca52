"""Clients that people have: nc, curl, httpx-sse, Chromium. They talk to each other over a server of two workers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator

import httpx
import httpx_sse
import pytest
from harness import Json, Server, wait_until
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By

pytestmark = pytest.mark.xdist_group("clients")  # one server, and one browser at a time

CONNECT = '{"op":"connect","user":"%s","channels":["room:lobby"]}\n'


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(["--workers", "2", "--heartbeat-seconds", "0.5"]) as made:
        yield made


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Run a program that has to be there; it is ended with the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        if shutil.which(command[0]) is None:
            pytest.skip(f"no {command[0]} on this machine")
        process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=1
        )  # fmt: skip
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        process.wait()


def say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def lines_of(process: subprocess.Popen[str]) -> Iterator[Json]:
    """Yield the JSON that a program prints, one object a line; of a stream, what is behind `data:`."""
    assert process.stdout is not None
    for line in process.stdout:
        if (text := line.removeprefix("data: ")).startswith("{"):
            yield json.loads(text)


def publish(server: Server, text: str, user: str = "somebody") -> None:
    assert server.request("POST", f"/publish?user={user}", {"channel": "room:lobby", "data": {"text": text}})[0] == 200


def test_netcat_and_curl_see_each_other(server: Server, run: Callable[..., subprocess.Popen[str]]) -> None:
    host, port = server.tcp
    alice = run("nc", host, str(port))
    bob = run("curl", "-sN", "http://{}:{}/events?user=bob&channel=room:lobby".format(*server.http))
    hears_alice, hears_bob = lines_of(alice), lines_of(bob)
    say(alice, CONNECT % "alice")
    assert next(hears_alice)["channels"] == ["@alice", "room:lobby"]
    assert next(hears_bob)["op"] == "connected"
    say(alice, '{"op":"publish","id":1,"channel":"room:lobby","data":{"text":"hi bob"}}\n')
    assert next(hears_bob)["data"] == {"text": "hi bob"}
    published = run(
        "curl", "-s", "-d", '{"channel":"room:lobby","data":{"text":"hi alice"}}',
        "http://{}:{}/publish?user=bob".format(*server.http),
    )  # fmt: skip
    assert next(lines_of(published))["position"]
    heard = next(m for m in hears_alice if m["op"] == "message" and m["from"] == "bob")
    assert heard["data"] == {"text": "hi alice"}


def test_what_is_piped_into_netcat_still_receives(server: Server, run: Callable[..., subprocess.Popen[str]]) -> None:
    """`printf ... | nc -N` closes its half after the last line, and reads on."""
    host, port = server.tcp
    listener = run("nc", "-N", host, str(port))
    say(listener, CONNECT % "carol")
    assert listener.stdin is not None
    listener.stdin.close()
    hears = lines_of(listener)
    assert next(hears)["op"] == "connected"
    publish(server, "still there?")
    assert next(hears)["data"] == {"text": "still there?"}
    listener.terminate()
    wait_until(lambda: server.stats()["total"]["connections_tcp"] == 0, "a heartbeat finds out that it has gone")


def test_httpx_sse(server: Server) -> None:
    url = "http://{}:{}/events".format(*server.http)
    params = {"user": "dave", "channel": ["room:lobby", "room:other"]}
    with httpx.Client(timeout=20) as client, httpx_sse.connect_sse(client, "GET", url, params=params) as source:
        events = source.iter_sse()
        connected = next(events)
        assert (connected.event, connected.json()["channels"]) == ("connected", ["@dave", "room:lobby", "room:other"])
        assert connected.id == connected.json()["position"]
        publish(server, "hello dave")
        message = next(events)
        assert (message.event, message.json()["data"]) == ("message", {"text": "hello dave"})
        assert message.id == message.json()["position"]


# A browser.


@pytest.fixture(scope="module")
def browsers() -> Iterator[Callable[[], webdriver.Chrome]]:
    """Start headless Chromium, as often as it is called."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    running: list[webdriver.Chrome] = []

    def start() -> webdriver.Chrome:
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        # No sandbox: a container has none to offer, and runs as root. No shared memory either: it has 64 MB of it.
        for argument in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
        ):
            options.add_argument(argument)
        try:
            running.append(webdriver.Chrome(options, webdriver.ChromeService(driver)))
        except WebDriverException as error:
            pytest.skip(f"chromium does not start here: {error.msg}")
        return running[-1]

    yield start
    for browser in running:
        browser.quit()


def join(browser: webdriver.Chrome, server: Server, user: str) -> None:
    """Open the chat page and join the lobby."""
    browser.get("http://{}:{}/".format(*server.http))
    browser.find_element(By.ID, "user").send_keys(user)
    browser.find_element(By.CSS_SELECTOR, "#join button").click()
    wait_shown(browser, f"you are {user}")


def wait_shown(browser: webdriver.Chrome, text: str) -> None:
    wait_until(lambda: text in browser.find_element(By.ID, "log").text, f"the page shows {text!r}")


def test_two_browsers_and_a_line_client_chat(server: Server, browsers: Callable[[], webdriver.Chrome]) -> None:
    first, second = browsers(), browsers()
    join(first, server, "erin")
    join(second, server, "frank")
    with server.joined("grace", "room:lobby") as grace:
        first.find_element(By.ID, "text").send_keys("hi <b>all</b>")
        first.find_element(By.CSS_SELECTOR, "#say button").click()
        for browser in (first, second):
            wait_shown(browser, "erin: hi <b>all</b>")  # and not in bold
        grace.expect("message", data={"text": "hi <b>all</b>"}, **{"from": "erin"})
        grace.send({"op": "publish", "id": 1, "channel": "room:lobby", "data": {"text": "hi from a line"}})
        for browser in (first, second):
            wait_shown(browser, "grace: hi from a line")
    state = second.find_element(By.ID, "state")
    assert state.text == "connected"

    # An EventSource comes back by itself, but not when it has been told not to.
    assert server.request("POST", "/api/users/frank/disconnect", {"reconnect": True}, admin=True)[0] == 200
    wait_shown(second, "asked to reconnect by the operator")
    wait_until(lambda: second.find_element(By.ID, "log").text.count("you are frank") == 2, "it has come back")
    publish(server, "welcome back")
    wait_shown(second, "somebody: welcome back")
    assert server.request("POST", "/api/users/frank/disconnect", {}, admin=True)[0] == 200
    wait_shown(second, "disconnected by the operator")
    wait_until(lambda: server.stats()["total"]["closed"].get("4009") == 1, "it is closed")
    assert second.execute_script("return source.readyState") == 2


def test_a_browser_is_told_what_is_wrong(server: Server, browsers: Callable[[], webdriver.Chrome]) -> None:
    browser = browsers()
    browser.get("http://{}:{}/".format(*server.http))
    browser.find_element(By.ID, "user").send_keys("heidi")
    channel = browser.find_element(By.ID, "channel")
    channel.clear()
    channel.send_keys("@erin")
    browser.find_element(By.CSS_SELECTOR, "#join button").click()
    wait_until(lambda: browser.find_element(By.ID, "state").text == "refused", "the page says so")
