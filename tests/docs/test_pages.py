"""Every page of the built site in Chromium, wide and narrow: nothing is cut off, nothing fails, no other host is asked."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]
ROOT = Path(__file__).parent.parent.parent
WIDTHS = (1280, 390)
CUT_OFF = """() => {
  const scrolls = e => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const name = e => `${e.tagName.toLowerCase()}.${e.className} "${(e.textContent || e.alt || '').trim().slice(0, 60)}"`;
  const found = [];
  if (document.documentElement.scrollWidth > innerWidth)
    found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const e of document.querySelectorAll('.md-content *')) {
    const box = e.getBoundingClientRect();
    if (box.width <= 1 || box.height <= 1) continue;
    if (box.right > innerWidth + 1 || box.left < -1) {
      let inside = false;
      for (let a = e; a && !a.matches('.md-content'); a = a.parentElement) inside ||= scrolls(a);
      if (!inside) found.push(`outside: ${name(e)}`);
    }
    if (e.scrollWidth > e.clientWidth + 1 && /hidden|clip/.test(getComputedStyle(e).overflowX) && !e.closest('.md-clipboard, nav'))
      found.push(`clipped: ${name(e)}`);
  }
  for (const e of document.images)
    if (!e.complete || e.naturalWidth === 0) found.push(`not loaded: ${e.src}`);
    else if (!e.alt) found.push(`no alternative text: ${e.src}`);
  return found;
}"""


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a page that is closed takes no more of its files."""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """The address of the built site, and its pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = sorted(page.parent.relative_to(folder).as_posix() for page in folder.rglob("index.html"))
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def faults(browser: Any, address: str, path: str, width: int) -> list[str]:
    """What is wrong with a page at a width."""
    found: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("request", lambda asked: asked.url.startswith((address, "data:", "blob:")) or found.append(f"asks {asked.url}"))
    page.on("console", lambda said: said.type == "error" and found.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.on("response", lambda got: got.status >= 400 and found.append(f"{got.status}: {got.url}"))
    page.goto(f"{address}/{path}/".replace("/./", "/"), wait_until="networkidle")
    found += page.evaluate(CUT_OFF)
    page.close()
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_cut_off_or_fails(site: tuple[str, list[str]], browser: Any, width: int) -> None:
    address, pages = site
    assert len(pages) > 30
    found = {path: faults(browser, address, path, width) for path in pages}
    assert {path: wrong for path, wrong in found.items() if wrong} == {}


BROKEN = """<body><div class="md-content" style="{style}"><img src="nothing.png" alt=""><pre style="width: 999px">{long}</pre></div>
<script src="http://localhost:9/x.js"></script><script>nothing()</script></body>"""


def test_a_broken_page_is_found(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(BROKEN.format(style="", long="x" * 999))
    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = faults(browser, f"http://127.0.0.1:{server.server_port}", ".", 390)
    server.shutdown()
    server.server_close()
    starts = ("asks http://localhost:9", "error: ", "404: ", "the page is", "outside: pre", "not loaded: ")
    assert [start for start in starts if not any(line.startswith(start) for line in found)] == [], found
