"""Which numbers stand on the page, in which sections: training, stages, scales, validation, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from varrl_lightning.run_page.record import RunRecord
from varrl_lightning.run_page.series import Groups, Select, Series, before_and_after, column, lines, of_stage
from varrl_lightning.run_page.specs import Spec, line_spec

BEFORE_AND_AFTER = "test prompts, before and after"
"""Two measurements, which no line joins."""
SMALL = 120
"""Height of a plot that stands beside others of its kind, in pixels."""


@dataclass(frozen=True)
class Panel:
    """One plot.

    Args:
        title: of the plot.
        spec: its Vega-Lite specification.
        series: the lines that its legend and its table of numbers are made of.
        small: whether it stands beside others.
    """

    title: str
    spec: Spec
    series: Sequence[Series] = ()
    small: bool = False


@dataclass
class Section:
    """A part of the page.

    Args:
        title: its heading.
        notes: sentences under it.
        panels: by a heading of their own; "" has none.
        html: more of it, as HTML, behind the panels.
    """

    title: str
    notes: list[str] = field(default_factory=list)
    panels: dict[str, list[Panel]] = field(default_factory=dict)
    html: str = ""

    @property
    def slug(self) -> str:
        """Its name in the address."""
        return self.title.lower().replace(" ", "-")


def training(runs: Groups) -> Section:
    """Rewards and the numbers of the updates."""
    stages = stage_names(runs)

    def by_stage(name: str) -> dict[str, Select]:
        return {stage: of_stage(stage, name) for stage in stages} or {"": column(name)}

    accuracy = {
        "validation": column("val/word_accuracy"),
        "rollouts": column("word_accuracy"),
        BEFORE_AND_AFTER: before_and_after("word_accuracy"),
    }
    subjects: list[tuple[str, str, dict[str, Select]]] = [
        ("Reward of rollouts", "reward", by_stage("reward")),
        ("Word accuracy", "share of words", accuracy),
        ("Loss", "loss", by_stage("loss")),
        ("KL to the reference", "nats a token", {"": column("kl")}),
        ("Entropy", "nats a token", by_stage("entropy")),
        ("Gradient norm, before clipping", "norm", by_stage("grad_norm")),
        ("Spread of rewards within a prompt", "standard deviation", by_stage("reward_std")),
        ("Learning rate", "learning rate", {"": column("lr")}),
    ]
    panels = [panel for subject in subjects for panel in _panel(runs, *subject)]
    parts = {name: {"": column(f"rewards/{name}")} for name in _names(runs, "rewards/")}
    return Section("Training", panels={"": panels, "Parts of the rewards": small(runs, parts, "", alike=False)})


def stages(runs: Groups) -> Section:
    """A panel for each stage and number, where a cycle has several stages."""
    names = stage_names(runs)
    if not names:
        return Section("Stages", ["All updates are of one stage, to which the panels of the training belong."])
    units = {"reward": "reward", "loss": "loss", "entropy": "nats a token", "kl": "nats a token", "grad_norm": "norm"}
    found = {
        name: small(runs, {f"{stage}: {name}": {"": of_stage(stage, name)} for stage in names}, unit)
        for name, unit in units.items()
    }
    return Section("Stages", ["Panels of one number have one axis."], found)


def scales(runs: Groups) -> Section:
    """A panel for each scale and number."""
    numbers = {
        "entropy": "nats a token",
        "kl": "nats a token",
        "sampler_gap": "nats a token",
        "clip_ratio/region_mean": "share",
        "mask_coverage": "share",
        "k_share": "share",
        "conflict/norm": "norm",
        "conflict/agreement": "share",
    }
    panels, notes = {}, ["Scales count from 1. Panels of one number have one axis."]
    for name, unit in numbers.items():
        parts = sorted(_names(runs, f"{name}/scale_"), key=int)
        found = small(runs, {f"scale {part}": {"": column(f"{name}/scale_{part}")} for part in parts}, unit)
        constant = {value for panel in found for one in panel.series for value in one.mean}
        if len(constant) == 1 and len(found) > 1:
            notes.append(f"{name} is {constant.pop():g} at every scale and step.")
        elif found:
            panels[_SCALE_TITLES.get(name, name)] = found
    return Section("Scales", notes if panels else ["No number of single scales was logged."], panels)


_SCALE_TITLES = {
    "entropy": "Entropy",
    "kl": "KL to the reference",
    "sampler_gap": "Sampler's log-probability less that of what is trained",
    "clip_ratio/region_mean": "Share of tokens clipped",
    "mask_coverage": "Mean weight of the mask",
    "k_share": "Share of the weights k_t",
    "conflict/norm": "Gradient norm of a batch, from ScaleConflict",
    "conflict/agreement": "Share of its square that batches have in common",
}


def validation(runs: Groups) -> Section:
    """All numbers of the validations, which always have the same prompts and noise."""
    names = sorted(_names(runs, "val/"), key=lambda name: (name.count("/"), name))
    panels = [panel for name in names for panel in _panel(runs, name, "", {"": column(f"val/{name}")}, SMALL)]
    notes = [] if panels else ["There was no validation: trainer.val_check_interval and data.validation make one."]
    return Section("Validation", notes, {"": panels})


def cost(runs: Groups) -> Section:
    """What an update takes."""
    parts: dict[str, Select] = {name: column(f"seconds/{name}") for name in ("rollout", "reward", "update")}
    subjects: list[tuple[str, str, dict[str, Select]]] = [
        ("Seconds of an update, by part", "seconds", parts),
        ("Images sampled a second", "images", {"": column("images_per_second")}),
        ("Tokens trained a second", "tokens", {"": column("tokens_per_second")}),
    ]
    panels = [panel for subject in subjects for panel in _panel(runs, *subject, SMALL)]
    return Section("Cost", [] if panels else ["No times were logged."], {"": panels})


def small(runs: Groups, titles: Mapping[str, Mapping[str, Select]], unit: str, alike: bool = True) -> list[Panel]:
    """Small panels side by side.

    Args:
        titles: what each shows, by its title.
        alike: whether all have one axis.
    """
    found = {title: drawn for title, choices in titles.items() if (drawn := lines(runs, choices))}
    values = [
        value
        for drawn in found.values()
        for one in drawn
        for value in (*one.mean, *(one.low or ()), *(one.high or ()), *(one.raw or ()))
    ]
    domain = (min(values), max(values)) if alike and values and min(values) < max(values) else None
    return [Panel(title, line_spec(drawn, unit, SMALL, domain), drawn, small=True) for title, drawn in found.items()]


def stage_names(runs: Groups) -> list[str]:
    """The stages of which numbers are logged under their own names: where a cycle has several."""
    return sorted({name for run in _all(runs) for name in run.metrics.matching("", "/loss")})


def _panel(runs: Groups, title: str, unit: str, choices: Mapping[str, Select], height: int = 220) -> list[Panel]:
    drawn = [replace(one, joined=False) if BEFORE_AND_AFTER in one.label else one for one in lines(runs, choices)]
    return [Panel(title, line_spec(drawn, unit, height), drawn, small=height == SMALL)] if drawn else []


def _names(runs: Groups, prefix: str) -> list[str]:
    return sorted({name for run in _all(runs) for name in run.metrics.matching(prefix)})


def _all(runs: Groups) -> list[RunRecord]:
    return [run for members in runs.values() for run in members]
