"""Takes the pictures of the console: `python -m tests.console.shots FOLDER`, which `make shots` does.

Every page is taken in both schemes and in two widths, from a database that is made anew; a person looks at them.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from durable_swarm import DurableSwarm
from durable_swarm.testing import ScriptedModel
from tests.console.browsing import Chromium, path_of_chromium, serving, sign_in, telling
from tests.console.shop import ASKED, answer, run_shop, triage, until
from tests.console.teller import RUN

PAGES = {
    "runs": "/runs",
    "run": "/runs/order-0003",
    "crash": f"/runs/{RUN}",
    "failed": "/runs/order-0004",
    "waiting": "/runs/order-0005",
    "inbox": "/inbox",
    "decided": "/inbox?state=decided",
    "fork": "/runs/order-0003/fork?turn=2",
    "compare": "/runs/order-0003/compare/order-0003-b",
    "session": "/sessions/guest-7",
    "workers": "/workers",
    "health": "/health?check=1",
}
LOOKS: tuple[tuple[str, int], ...] = (("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390))


def make(url: str) -> None:
    """Make runs of every kind: also one whose process was killed, a fork, a session, a schedule, a decided request."""
    run_shop(url)
    with DurableSwarm(ScriptedModel(answer), database=url) as swarm:
        swarm.get("order-0003").fork(2, messages=[{"role": "user", "content": "Tea will do."}], run_id="order-0003-b")
        swarm.session("guest-7", triage).run(ASKED["order-0001"])
        swarm.schedule("nightly-report", triage, [{"role": "user", "content": "How was it?"}], cron="0 3 * * *")
        again = swarm.get("order-0005").fork(1, run_id="order-0005-b")
        [asked] = until(again.requests)
        again.approve(asked.id, arguments={"customer": "Max", "amount": 90}, by="ana")
        again.result()
    with telling(url, 0.02) as teller, DurableSwarm(ScriptedModel(answer), database=url) as swarm:
        until(lambda: any(run.id == RUN and run.status == "running" for run in swarm.runs()))
        teller.kill()
    with telling(url, 0.001) as teller:
        teller.wait()


def take(browser: Chromium, url: str, folder: Path) -> None:
    """Take all pages."""
    with DurableSwarm(ScriptedModel(answer), database=url) as swarm, serving(url) as address:
        swarm.runs(limit=1)
        for scheme, width in LOOKS:

            def pages(page: Any, name: str = f"{scheme}-{width}") -> None:
                sign_in(page, address)
                for title, path in PAGES.items():
                    page.goto(address + path)
                    page.screenshot(path=folder / f"{title}-{name}.png", full_page=True)

            browser.run(pages, viewport={"width": width, "height": 720}, color_scheme=scheme)


def main(folder: str) -> None:
    """Take the pictures."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    browser = Chromium(path_of_chromium())
    try:
        with tempfile.TemporaryDirectory() as made:
            make(url := f"sqlite:///{made}/shop.sqlite")
            take(browser, url, Path(folder))
    finally:
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
