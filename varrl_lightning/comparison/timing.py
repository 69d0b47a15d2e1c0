"""Measures what an update of each recipe costs: recipes take turns, so that what else the machine does meets all of them."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from varrl_lightning.callbacks.environment import versions
from varrl_lightning.comparison.costs import Cost, StageCost
from varrl_lightning.comparison.spec import Spec
from varrl_lightning.comparison.training import PARTS, build, train
from varrl_lightning.comparison.workers import check_made, threads_of_processes, write_json
from varrl_lightning.errors import StartError
from varrl_lightning.types import Stage

BUSY = 0.15
"""Share of waiting from which on a measurement on one thread is reported to have shared its core."""
ENDLESS = 10**6
"""Updates of the schedule while costs are measured: its end is not reached."""
MEASURED = ("place", "seconds", "cpu_seconds", *PARTS)
"""What is kept of a measured update: the first place of its stage in the cycle, and seconds."""
Tree = Mapping[str, Any]


class Timing:
    """`timing.json`: the machine, and for each recipe and number of prompts the measured updates of each round and its cost.

    Args:
        trees: the configuration of a recipe at a number of prompts, for so many updates.
        made: what a recipe's cost depends on.
    """

    def __init__(self, spec: Spec, trees: Callable[[str, int, int], Tree], made: Callable[[str], Mapping[str, Any]]) -> None:
        self.spec, self._trees, self._made = spec, trees, made
        self.path = Path(spec.output) / "timing.json"

    def read(self) -> dict[str, Any]:
        """The content of the file; refuses costs of other recipes."""
        if not self.path.is_file():
            return {"machine": machine(self.spec.threads), "versions": versions(), "measured": MEASURED, "recipes": {}}
        table: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        for recipe in self.spec.recipes:
            for prompts, entry in table["recipes"].get(recipe, {}).items():
                check_made(entry["made"], self._made(recipe), f"{self.path}: {recipe} with {prompts} prompts")
        return table

    def measure(self) -> None:
        """Measure the rounds that are missing, and write the file after each turn.

        Raises:
            StartError: when the file is of another machine.
        """
        table = self.read()
        turns = [(recipe, prompts) for recipe in self.spec.recipes for prompts in self.spec.grid.prompts_per_update]
        done = {turn: len(table["recipes"].get(turn[0], {}).get(str(turn[1]), {"rounds": []})["rounds"]) for turn in turns}
        if min(done.values()) >= self.spec.timing.rounds:
            return
        here = machine(self.spec.threads)
        if table["machine"] != here:
            raise StartError(f"{self.path} has costs of {table['machine']}, and this is {here}. Complete it there, or remove it.")
        if len({min(count, self.spec.timing.rounds) for count in done.values()}) > 1:
            print("  Some recipes have rounds already, the others take their turns without them.", flush=True)
        with threads_of_processes(self.spec.threads):
            for number in range(self.spec.timing.rounds):
                for recipe, prompts in (turn for turn in turns if done[turn] <= number):
                    self._turn(table, recipe, prompts)
                    write_json(self.path, table)
                print(f"round {number + 1} of {self.spec.timing.rounds}", flush=True)
        self._show(table)

    def _turn(self, table: dict[str, Any], recipe: str, prompts: int) -> None:
        """One recipe's turn of a round."""
        module, data, config = build(self._trees(recipe, prompts, ENDLESS), recipe)
        cycle, timing = module.cycle, self.spec.timing
        updates = timing.warm_up + -(-timing.updates // len(cycle)) * len(cycle)
        steps = train(module, data, config, updates, {}).steps
        places = [cycle.index(cycle[i % len(cycle)]) for i in range(updates)]
        measured = [[place, *_clocks(step)] for place, step in zip(places, steps, strict=True)][timing.warm_up :]
        entry = table["recipes"].setdefault(recipe, {}).setdefault(str(prompts), {"made": dict(self._made(recipe)), "rounds": []})
        entry["rounds"].append(measured)
        cost = quietest(entry["rounds"], cycle, prompts)
        entry |= {
            name: round(getattr(cost, name), 5) for name in ("seconds_per_update", "images_per_update", "reward_share", "waiting")
        }
        entry["cycle"] = cost.as_json()

    def _show(self, table: Mapping[str, Any]) -> None:
        for recipe in self.spec.recipes:
            for prompts, entry in table["recipes"][recipe].items():
                seconds, waiting = entry["seconds_per_update"], entry["waiting"]
                print(
                    f"{recipe}, {prompts} prompts: {seconds:.2f} s an update, {entry['reward_share']:.0%} of it the reward",
                    flush=True,
                )
                if self.spec.threads == 1 and waiting > BUSY:
                    print(
                        f"  The process waited for {waiting:.0%} of that: measure again on a machine that does nothing else.",
                        flush=True,
                    )

    def costs(self) -> dict[str, dict[int, Cost]]:
        """The measured costs, by recipe and prompts per update.

        Raises:
            StartError: when a cost was not measured yet.
        """
        table, costs = self.read()["recipes"], {}
        for recipe in self.spec.recipes:
            measured = {int(prompts): entry for prompts, entry in table.get(recipe, {}).items()}
            for prompts in self.spec.grid.prompts_per_update:
                if len(measured.get(prompts, {"rounds": []})["rounds"]) < self.spec.timing.rounds:
                    raise StartError(
                        f"{self.path} lacks {recipe} with {prompts} prompts; run --phase time first, on a quiet machine"
                    )
            costs[recipe] = {prompts: Cost.read(measured[prompts]["cycle"]) for prompts in self.spec.grid.prompts_per_update}
        return costs


def _clocks(step: Mapping[str, Any]) -> list[float]:
    return [round(x, 4) for x in (step["seconds"], step["cpu_seconds"], *(step["parts"][part] for part in PARTS))]


def quietest(rounds: list[list[list[float]]], cycle: tuple[Stage, ...], prompts: int) -> Cost:
    """The cost of each stage of the cycle: the medians of the round in which its updates took the fewest seconds.

    What else a machine does can only slow an update down, often for minutes on end. A median over all rounds would charge that to
    the recipe whose turn it was.

    Args:
        rounds: the measured updates of each, as `MEASURED`.
    """
    costs: dict[int, StageCost] = {}
    for place in {cycle.index(stage) for stage in cycle}:
        of_rounds = [[step for step in steps if step[0] == place] for steps in rounds]
        found = min((_medians(steps) for steps in of_rounds if steps), key=lambda median: median["seconds"])
        stage = cycle[place]
        parts = {part: found[part] for part in PARTS}
        costs[place] = StageCost(stage.name, prompts * stage.scored_per_prompt, found["seconds"], found["cpu_seconds"], parts)
    return Cost(tuple(costs[cycle.index(stage)] for stage in cycle))


def _medians(steps: list[list[float]]) -> dict[str, float]:
    return {name: statistics.median(step[i] for step in steps) for i, name in enumerate(MEASURED) if name != "place"}


def machine(threads: int) -> dict[str, Any]:
    """A description of the machine on which costs are measured."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "threads": threads}
