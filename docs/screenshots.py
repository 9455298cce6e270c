"""The images of the explorer in the docs: ``python docs/screenshots.py RUN SWEEP``.

``RUN`` is a capture of the demo model with every channel's maps and its analyses (docs/start.md, "Analyze"), ``SWEEP``
a transport of it ("Intervene"). It needs Playwright and a Chromium on the PATH, and writes ``docs/explore_*.png``.
"""

import shutil
import sys
import threading
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from fewchannels.interventions.live.session import LiveModel
from fewchannels.views.explore.live import Live
from fewchannels.views.explore.opened import OpenedRun, open_places
from fewchannels.views.explore.server import bind

DOCS = Path(__file__).parent
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync", "--no-first-run")
PROMPT = "a%20large%20red%20star%20in%20the%20center%20on%20a%20blue%20background"


def main(run: str, sweep: str) -> None:
    places = open_places([run, sweep])
    opened, name = next((each, name) for name, each in places.items() if isinstance(each, OpenedRun))
    other = next(each for each in places if each != name)
    question = (
        "select sample_id from samples join manifest using (sample_id) where samples.prompt like '%star%' limit 1"
    )
    sample_id = opened.catalog.sql(question).fetchall()[0][0]
    layer, step = opened.layers[len(opened.layers) // 2], opened.steps[-2]
    looks = {
        "gallery": (f"run/{name}?by=iou&order=largest", 620, "light"),
        "sample": (f"run/{name}/sample/{sample_id}?layer={layer}&step={step}&outline=1", 820, "light"),
        "clusters": (f"run/{name}/sample/{sample_id}?layer={layer}&step={step}&outline=1&show=clusters", 820, "dark"),
        "sweep": (f"sweep/{other}?row=selection&column=k", 900, "light"),
        "sql": (f"run/{name}/sql?query=alignment_by_layer", 820, "light"),
        "live": (f"live?prompt={PROMPT}&action=zero&selection=top&k=8", 980, "light"),
    }
    session = Live(LiveModel("demo", 2), "demo")
    bound = bind(places, 0, session)
    threading.Thread(target=bound.server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        for what, (path, height, theme) in looks.items():
            page: Page = browser.new_page(viewport={"width": 1280, "height": height}, color_scheme=theme)
            page.goto(bound.address)
            page.wait_for_url(bound.base)
            page.goto(bound.base + path)
            page.wait_for_selector("#page h1")
            if what == "sql":
                page.locator("#console-ask").click()
            if what == "live":
                page.locator("#live-go").click()
                page.locator("#live-state").get_by_text("done,").wait_for()
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(1500)
            page.screenshot(path=DOCS / f"explore_{what}.png")
            page.close()
        browser.close()
    bound.server.shutdown()
    session.model.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
