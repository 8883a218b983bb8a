"""Makes the README's picture of the report page: `python tests/sample/make_screenshot.py [FILE]`.

It replays the sample clip, opens the page in headless Chromium (`apt-get install chromium`) and
writes FILE, which is `report.webp` beside this script. No picture of a real person is in it.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from streamproc import replay

HERE = Path(__file__).parent
CHROMIUM = "/usr/bin/chromium"
# A root user has no sandbox, and a container has no GPU.
FLAGS = ["--no-sandbox", "--disable-gpu"]
WIDTH = 1200
HEIGHT = 2000  # so much that all of the picture is in the window: what is not is loaded later


def photograph(browser: Browser, page_file: Path) -> Image.Image:
    """Return the page as it looks once the animations stand still and the heatmap is drawn."""
    context = browser.new_context(
        viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(page_file.as_uri())
    # The page's content security policy forbids scripts of Playwright's that wait, so wait for
    # elements: a picture becomes a canvas when it has come and stands still.
    for selector in ("#candidates canvas", "#compare-result canvas", "#heatmap .nsewdrag"):
        page.locator(selector).first.wait_for(state="attached")
    matrix = page.locator("#matrix").bounding_box()
    assert matrix is not None
    below = matrix["y"] + matrix["height"] + 24
    part = {"x": 0, "y": 0, "width": WIDTH, "height": below}
    return Image.open(io.BytesIO(page.screenshot(clip=part)))


def main(target: Path) -> None:
    """Replay the sample clip and write the picture of its page."""
    with tempfile.TemporaryDirectory() as folder:
        replay(HERE / "sample.mp4", out=folder)
        page_file = Path(folder) / "webp_viewer" / "person_selection.html"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            picture = photograph(browser, page_file)
            browser.close()
    picture.convert("RGB").save(target, quality=82, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "report.webp")
