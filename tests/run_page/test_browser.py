"""The page in Chromium, opened from disk, wide and narrow: plots are drawn, nothing fails, keyboards sort and filter."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.run_page.made import trained
from varrl_lightning.run_page.page import write_page
from varrl_lightning.run_page.record import read_runs

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'browser'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
]
CONTRAST = """() => {
  const light = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (!c.endsWith(', 0)')) return c; } return 'rgb(255, 255, 255)'; };
  const poor = [];
  for (const e of document.querySelectorAll('body *:not(script):not(svg):not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${e.tagName} ${e.textContent.slice(0, 40)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of one run, as a file."""
    run = trained(tmp_path_factory.mktemp("runs") / "tiny")
    write_page(run / "report.html", read_runs([run]))
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def opened(browser: Any, address: str, found: list[str], width: int = 1280, **options: Any) -> Any:
    """The page without a network, when all plots are drawn; what goes wrong is added to `found`."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
    page = context.new_page()
    page.on("request", lambda asked: asked.url.startswith((address, "data:")) or found.append(f"asks {asked.url}"))
    page.on("console", lambda said: said.type in ("error", "warning") and found.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: found.append(f"error: {error}"))
    page.goto(address)
    page.wait_for_function("document.documentElement.dataset.drawn === 'all'", timeout=60_000)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_all_plots_are_drawn_and_nothing_fails_or_is_cut_off(browser: Any, address: str, width: int, scheme: str) -> None:
    found: list[str] = []
    page = opened(browser, address, found, width, color_scheme=scheme)
    places, drawn = page.evaluate(
        "[document.querySelectorAll('[data-spec]').length, document.querySelectorAll('[data-spec] svg').length]"
    )
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"{width} pixels, {scheme}: {places} plots, loaded after {loaded:.0f} ms")
    assert places == drawn > 30
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].filter(i => i.loading !== 'lazy' && !i.naturalWidth).length") == 0
    assert page.evaluate(CONTRAST) == []
    assert (
        page.evaluate(
            "[...document.querySelectorAll('.plot svg')].filter(s => s.getBoundingClientRect().width > innerWidth).length"
        )
        == 0
    )
    assert found == []


def test_the_first_tab_skips_to_the_results(browser: Any, address: str) -> None:
    page = opened(browser, address, [])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_headings_sort_by_keyboard(browser: Any, address: str) -> None:
    page = opened(browser, address, [])
    head = page.locator("#sample-table th", has=page.get_by_role("button", name="reward", exact=True))
    column = head.evaluate("e => e.cellIndex")
    values = f"[...document.querySelectorAll('#sample-table tbody tr')].map(r => Number(r.cells[{column}].dataset.value))"
    for direction, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == direction
        assert (numbers := page.evaluate(values)) == sorted(numbers, reverse=reverse)
        assert len(set(numbers)) > 1
    assert page.locator("#sample-table th[aria-sort]").count() == 1


def test_filters_hide_rows_and_say_how_many_are_left(browser: Any, address: str) -> None:
    page = opened(browser, address, [])
    rows, shown = "[...document.querySelectorAll('#sample-table tbody tr')].filter(r => !r.hidden)", page.locator("#shown")
    form = page.locator("#filters")
    count = page.evaluate(f"{rows}.length")
    form.get_by_label("stage").select_option("prefix")
    assert page.evaluate(f"{rows}.every(r => r.dataset.stage === 'prefix')")
    left = page.evaluate(f"{rows}.length")
    assert 0 < left < count
    assert shown.inner_text() == f"{left} of {count} samples"
    form.get_by_label("number").select_option("step")
    form.get_by_label("at least").fill("2")
    assert 0 < page.evaluate(f"{rows}.length") < left
    form.get_by_role("button", name="Show all").press("Enter")
    page.wait_for_function(f"document.getElementById('shown').textContent === '{count} of {count} samples'")
    form.get_by_label("prompt, words or read text has").fill("no such word")
    assert shown.inner_text() == f"0 of {count} samples"


def test_on_paper_all_plots_and_rows_are_there_without_the_form(browser: Any, address: str) -> None:
    page = opened(browser, address, [], color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("#filters").is_visible()
    assert page.evaluate("document.querySelectorAll('[data-spec]:not(:has(svg))').length") == 0


def test_a_page_that_fails_is_noticed(browser: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text("<html data-drawn=all><body><img src=http://localhost:9/x.png><script>nothing()</script>")
    found: list[str] = []
    opened(browser, broken.as_uri(), found)
    assert any(line.startswith("asks http://localhost:9") for line in found)
    assert any(line.startswith("error: ") for line in found)
