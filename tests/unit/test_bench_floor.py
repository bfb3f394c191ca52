"""The bare loop in an interpreter of its own: it forks, which a test process with threads should not."""

import json
import subprocess
import sys

FLOOR = """
import json
from bench.floor import Floor
from bench.wire import publish_line

with Floor(60) as floor:
    print(json.dumps([floor.us_per_write(publish_line(0, "room:a", 99), passes) for passes in (1, 3)]))
"""


def test_every_write_of_the_bare_loop_arrives() -> None:
    done = subprocess.run([sys.executable, "-c", FLOOR], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert all(us > 0 for us in json.loads(done.stdout))
