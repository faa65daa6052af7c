"""The README's picture: the top of a quickstart report in Chromium.

python docs/picture.py runs/quickstart/report/index.html docs/images/report.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright


def picture(page: Path, out: Path) -> None:
    """Renders the verdicts and curves of a report at 1280 pixels."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        view = browser.new_page(viewport={"width": 1280, "height": 1100})
        view.goto(page.resolve().as_uri())
        view.get_by_role("heading", name="Verdicts").evaluate("h => h.scrollIntoView()")
        view.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]))
