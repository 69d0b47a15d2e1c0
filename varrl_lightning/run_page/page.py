"""Writes the page of one run, or of several beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import Template

from varrl_lightning.configuration.atomic_write import replace_text
from varrl_lightning.run_page import about, callback_panels, panels
from varrl_lightning.run_page.markup import escaped, number, script_json, table, tag
from varrl_lightning.run_page.panels import Panel, Section
from varrl_lightning.run_page.pictures import before_after
from varrl_lightning.run_page.record import RunRecord
from varrl_lightning.run_page.sample_table import sample_table
from varrl_lightning.run_page.series import LONG, Series, groups
from varrl_lightning.run_page.specs import Spec, colour, dash

_HERE = Path(__file__).parent
_SHAPES = (
    '<circle cx="16" cy="5" r="4"/>',
    '<rect x="12" y="1" width="8" height="8"/>',
    '<path d="M16 1l5 8H11z"/>',
    '<path d="M16 0l5 5-5 5-5-5z"/>',
    '<path d="M14 0h4v3h3v4h-3v3h-4V7h-3V3h3z"/>',
    '<path d="M16 9l5-8H11z"/>',
)
"""The shapes of `specs.SHAPES`, for the legend."""


def write_page(path: Path, runs: Sequence[RunRecord]) -> None:
    """Write the page, in one step.

    Raises:
        ImportError: without the extra `report`.
        OSError: where it cannot be written.
    """
    replace_text(path, page(runs))


def page(runs: Sequence[RunRecord]) -> str:
    """The page: everything that it needs is in it, and it asks no other host for anything.

    Raises:
        ImportError: without the extra `report`.
    """
    import vl_convert

    specs: list[Spec] = []
    sections = _sections(runs)
    main = _problems(runs) + "".join(_section(section, specs) for section in sections)
    title = f"Run {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    return Template(_read("page.html")).substitute(
        title=escaped(title),
        about=escaped(_spread(runs)),
        contents="".join(tag("li", tag("a", escaped(one.title), {"href": f"#{one.slug}"})) for one in sections),
        main=main,
        footer=f"Written by varrl report. Plots by Vega-Lite {escaped(vl_convert.get_vegalite_versions()[-1])} (BSD-3-Clause).",
        specs=script_json(specs),
        style=_read("page.css"),
        script=_read("page.js"),
        license=_read("vega_license.txt"),
        bundle=_bundle(),
    )


@cache
def _bundle() -> str:
    """Vega-Lite and what it needs; no text in it ends the element that it stands in."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


def _sections(runs: Sequence[RunRecord]) -> list[Section]:
    grouped = groups(runs)
    return [
        about.results(runs),
        before_after(runs),
        panels.training(grouped),
        panels.validation(grouped),
        panels.stages(grouped),
        panels.scales(grouped),
        callback_panels.conflict(runs),
        callback_panels.hacking(runs, grouped),
        panels.cost(grouped),
        sample_table(runs),
        about.configuration(runs),
        about.environment(runs),
        about.verification(runs),
    ]


def _spread(runs: Sequence[RunRecord]) -> str:
    """How lines and bands are to be read."""
    long = f"A noisy curve of {LONG} points or more is a moving mean over a twentieth of it"
    grouped = [members for members in groups(runs).values() if len(members) > 1]
    if not grouped:
        return f"{long}; single values are pale behind it."
    named = "; ".join(", ".join(run.name for run in members) for members in grouped)
    one = "Runs that differ by the seed alone are one line: their mean, in a band from the lowest to the highest run"
    return f"{long}. {one} ({named})."


def _problems(runs: Sequence[RunRecord]) -> str:
    found = [problem for run in runs for problem in run.problems]
    if not found:
        return ""
    items = "".join(tag("li", escaped(problem)) for problem in found)
    return tag("div", tag("strong", "What this page does not have") + tag("ul", items), {"class": "problems", "role": "note"})


def _section(section: Section, specs: list[Spec]) -> str:
    content = tag("h2", escaped(section.title), {"id": f"{section.slug}-title"})
    content += "".join(tag("p", escaped(note)) for note in section.notes)
    for heading, found in section.panels.items():
        if found:
            content += tag("h3", escaped(heading)) if heading else ""
            place = "panels small" if all(panel.small for panel in found) else "panels"
            level = "h4" if heading else "h3"
            content += tag("div", "".join(_panel(panel, specs, level) for panel in found), {"class": place})
    content += section.html
    return tag("section", content, {"id": section.slug, "aria-labelledby": f"{section.slug}-title"})


def _panel(panel: Panel, specs: list[Spec], level: str) -> str:
    specs.append(panel.spec)
    content = tag(level, _breaks(escaped(panel.title))) + (
        _legend(panel.series) if len(panel.series) > 1 and not _is_map(panel) else ""
    )
    height = int(panel.spec["height"])
    attributes = {
        "class": "plot",
        "data-spec": len(specs) - 1,
        "role": "img",
        "aria-label": _label(panel),
        "style": f"min-height: {height}px",
    }
    content += tag("div", "", attributes)
    rows = [
        [s.label, len(s.mean), *map(number, (s.mean[0], s.mean[-1], min(s.low or s.mean), max(s.high or s.mean)))]
        for s in panel.series
    ]
    heads = ["line", "points", "first", "last", "lowest", "highest"]
    if rows:
        content += tag("details", tag("summary", "Numbers") + table(panel.title, heads, rows, numbers=True))
    return tag("div", content, {"class": "panel"})


def _legend(series: Sequence[Series]) -> str:
    items = ""
    for index, one in enumerate(series):
        line = {"x1": 0, "x2": 32, "y1": 5, "y2": 5, "stroke-width": 2, "stroke-dasharray": " ".join(map(str, dash(index))) or None}
        band = tag("rect", "", {"width": 32, "height": 10, "opacity": 0.25, "stroke": "none"}) if one.low else ""
        drawn = band + (tag("line", "", line) if one.joined else "") + _SHAPES[index % len(_SHAPES)]
        mark = tag("svg", drawn, {"width": 32, "height": 10, "aria-hidden": "true", "fill": colour(index), "stroke": colour(index)})
        items += tag("li", mark + escaped(one.label) + (" (mean, lowest to highest)" if one.low else ""))
    return tag("ul", items, {"class": "legend"})


def _label(panel: Panel) -> str:
    """What the plot says, for those who do not see it."""
    said = [f"{one.label} from {number(one.mean[0])} to {number(one.mean[-1])}" for one in panel.series[:8]]
    return f"Plot of {panel.title}. {'; '.join(said)}."


def _breaks(text: str) -> str:
    """Names of metrics may go on in the next line behind a stroke."""
    return text.replace("/", "/<wbr>").replace("_", "_<wbr>")


def _is_map(panel: Panel) -> bool:
    return "encoding" in panel.spec


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
