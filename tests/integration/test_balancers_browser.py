"""A browser's tab stays open while every node is drained and started again, one after the other."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancers import Balancer, Haproxy, Nginx, Node
from harness import wait_until
from selenium import webdriver
from selenium.common.exceptions import WebDriverException

from router.embedded import Embedded

pytestmark = pytest.mark.xdist_group("clients")  # one browser at a time

LISTEN = """
    heard = []; opened = 0;
    source = new EventSource("/events?user=nina&channel=room:tab");
    source.onopen = () => opened++;
    source.onmessage = event => heard.push(JSON.parse(event.data).data);
"""


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.accept_insecure_certs = True
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"):
        options.add_argument(argument)
    try:
        made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    except WebDriverException as error:
        pytest.skip(f"chromium does not start here: {error.msg}")
    yield made
    made.quit()


@pytest.mark.parametrize("kind", [Haproxy, Nginx])
def test_a_tab_hears_everything_through_a_rolling_restart(
    kind: type[Balancer], tmp_path: Path, browser: webdriver.Chrome
) -> None:
    numbers = itertools.count()

    def publish(node: Node, count: int) -> None:
        assert node.server is not None
        for number in itertools.islice(numbers, count):
            body = {"channel": "room:tab", "data": number}
            assert node.server.request("POST", "/api/publish", body, admin=True)[0] == 200

    options = ("--workers", "1", "--drain-seconds", "1")
    with Embedded() as valkey, kind(tmp_path, valkey.url, *options) as balancer:
        browser.get("https://{}:{}/".format(*balancer.web))
        assert browser.execute_script("return performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        browser.execute_script(LISTEN)
        wait_until(lambda: browser.execute_script("return opened") == 1, "the tab listens")
        for node, other in ((balancer.a, balancer.b), (balancer.b, balancer.a)):
            assert node.server is not None
            process = node.server.process
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: publish(other, 1) or process.poll() is not None, "drained")  # noqa: B023  # called here
            node.stop()
            publish(other, 3)
            node.start()
            if isinstance(balancer, Haproxy):
                name = "a" if node is balancer.a else "b"
                wait_until(lambda: balancer.states(name) == {"UP"}, "up again")  # noqa: B023
            publish(node, 3)
        count = next(numbers)
        wait_until(lambda: len(browser.execute_script("return heard")) >= count, "the tab has caught up", 30)
        assert browser.execute_script("return heard") == list(range(count))
        assert browser.execute_script("return opened") >= 2
