"""Vega-Lite specifications of the page's plots, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from varrl_lightning.run_page.series import Series

Spec = dict[str, Any]
COLOURS = 6
"""Colours of the style sheet, `--c0` on."""
DASHES: tuple[list[int], ...] = ([], [6, 3], [2, 2], [8, 3, 2, 3], [12, 4], [4, 2, 1, 2, 1, 2])
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
"""Dash and shape of the series of the same place: a plot can be read without its colours."""
MARKED = 25
"""A line of so many points or fewer has marks on them."""


_NUMBER = "datum.value != 0 && abs(datum.value) < 1e-4 ? format(datum.value, '.2~e') : format(datum.value, '~r')"


def colour(index: int) -> str:
    """The colour of a series: a variable of the style sheet, which has others for a dark screen."""
    return f"var(--c{index % COLOURS})"


def dash(index: int) -> list[int]:
    """The dashes of a series; when the colours begin again, they go with other dashes."""
    return DASHES[(index + index // COLOURS) % len(DASHES)]


def line_spec(series: Sequence[Series], unit: str, height: int = 220, domain: tuple[float, float] | None = None) -> Spec:
    """Lines over training steps, with a band from the lowest to the highest run, and pale single values."""
    layers: list[Spec] = []
    for index, one in enumerate(series):
        layers += _layers(one, index, _scale(unit, domain))
    return plot({"layer": layers}, height)


def _layers(one: Series, index: int, y: Spec) -> list[Spec]:
    rows = [{"step": step, "value": value} for step, value in zip(one.steps, one.mean, strict=True)]
    for name, values in (("low", one.low), ("high", one.high), ("raw", one.raw)):
        for row, value in zip(rows, values or (), strict=False):
            row[name] = value
    tint = colour(index)
    layers = []
    if one.low:
        band = {"type": "area", "opacity": 0.2} if one.joined else {"type": "rule", "strokeWidth": 2}
        band["color"] = tint
        layers.append({"mark": band, "encoding": {"x": _x(), "y": _y("low", y), "y2": {"field": "high"}}})
    if one.raw:
        pale = {"type": "line", "color": tint, "opacity": 0.3, "strokeWidth": 1}
        layers.append({"mark": pale, "encoding": {"x": _x(), "y": _y("raw", y)}})
    if one.joined:
        solid = {"type": "line", "color": tint, "strokeWidth": 2, "strokeDash": dash(index)}
        layers.append({"mark": solid, "encoding": {"x": _x(), "y": _y("value", y)}})
    if len(rows) <= MARKED or not one.joined:
        mark = {"type": "point", "color": tint, "filled": True, "opacity": 1, "size": 60, "shape": SHAPES[index % len(SHAPES)]}
        layers.append({"mark": mark, "encoding": {"x": _x(), "y": _y("value", y), "tooltip": _tooltip("value")}})
    # The data once for all layers of a line.
    return [{"data": {"values": rows}, "layer": layers}]


def interval_spec(rows: Sequence[Mapping[str, float]], alarms: Sequence[int], unit: str, height: int = 150) -> Spec:
    """Points with error bars around a line at 0; alarms are upright lines.

    Args:
        rows: `step`, `value`, `low` and `high` of each point.
        alarms: the steps with an alarm.
    """
    y = _scale(unit, None)
    tint = colour(0)
    zero = {"mark": {"type": "rule", "color": "var(--quiet)", "strokeDash": [2, 2]}, "encoding": {"y": {"datum": 0}}}
    bar = {
        "mark": {"type": "rule", "color": tint, "strokeWidth": 2},
        "encoding": {"x": _x(), "y": _y("low", y), "y2": {"field": "high"}},
    }
    point = {
        "mark": {"type": "point", "color": tint, "filled": True, "size": 60, "opacity": 1},
        "encoding": {"x": _x(), "y": _y("value", y), "tooltip": _tooltip("value", "low", "high")},
    }
    layers: list[Spec] = [zero, {"data": {"values": list(rows)}, "layer": [bar, point]}]
    if alarms:
        data = {"values": [{"step": step} for step in alarms]}
        rule = {"mark": {"type": "rule", "color": colour(4), "strokeWidth": 2, "strokeDash": [6, 3]}, "encoding": {"x": _x()}}
        text = {
            "mark": {"type": "text", "text": "alarm", "dy": -4, "baseline": "bottom", "color": colour(4)},
            "encoding": {"x": _x(), "y": {"value": 0}},
        }
        layers.append({"data": data, "layer": [rule, text]})
    return plot({"layer": layers}, height)


def map_spec(cells: Sequence[Mapping[str, float]], scales: Sequence[int], size: int = 200) -> Spec:
    """A map of scale by scale, a cosine in each cell, also as a number.

    Args:
        scales: all of them, so that maps of several steps are alike.
    """
    place = {"type": "ordinal", "axis": {"labelAngle": 0, "title": "scale"}, "scale": {"domain": list(scales)}}
    places = {"x": {"field": "s"} | place, "y": {"field": "t"} | place}
    tint = {"field": "cosine", "type": "quantitative", "scale": {"scheme": "redblue", "domain": [-1, 1]}, "legend": None}
    text = {"field": "cosine", "type": "quantitative", "format": "+.2f"}
    strong = {"condition": {"test": "abs(datum.cosine) > 0.55", "value": "white"}, "value": "black"}
    return plot(
        {
            "data": {"values": list(cells)},
            "encoding": places,
            "layer": [
                {"mark": "rect", "encoding": {"color": tint}},
                {"mark": {"type": "text", "fontSize": 10}, "encoding": {"text": text, "color": strong}},
            ],
        },
        size,
    )


def plot(spec: Spec, height: int) -> Spec:
    """What all plots have in common: as wide as its place on the page, colours of the page, no legend of its own."""
    axis = {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "tickColor": "var(--quiet)",
        "domainColor": "var(--quiet)",
        "gridColor": "var(--line)",
        "titleFontWeight": "normal",
        "labelFontSize": 12,
        "titleFontSize": 12,
    }
    config = {"background": None, "font": "system-ui, sans-serif", "aria": False, "axis": axis, "view": {"stroke": None}}
    return {"width": "container", "height": height, "autosize": {"type": "fit", "contains": "padding"}, "config": config} | spec


def _x() -> Spec:
    axis = {"title": "training step", "grid": False, "tickMinStep": 1, "labelOverlap": True, "tickCount": 5, "format": "~s"}
    return {"field": "step", "type": "quantitative", "axis": axis, "scale": {"nice": False}}


def _y(field: str, scale: Spec) -> Spec:
    return {"field": field, "type": "quantitative"} | scale


def _scale(unit: str, domain: tuple[float, float] | None) -> Spec:
    scale: Spec = {"zero": False} | ({"domain": list(domain)} if domain else {})
    return {"axis": {"title": unit, "tickCount": 5, "labelExpr": _NUMBER}, "scale": scale}


def _tooltip(*fields: str) -> list[Spec]:
    return [{"field": "step", "type": "quantitative"}] + [{"field": f, "type": "quantitative", "format": ".4~g"} for f in fields]
