"""What a run shows on a terminal: a bar of its steps, one of the part of the present step, and the last alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from varrl_lightning.callbacks.lines import numbers
from varrl_lightning.callbacks.pace import duration

UNITS = {"rollout": "scales", "reward": "images", "update": "micro-batches"}
"""What is counted in each part of a step."""


class Bars(Progress):
    """Redraws itself a few times a second in a thread of its own, so that what is told costs a step nothing but a few numbers.

    Args:
        console: the terminal.
        done: steps done.
        total: steps of the run; None where it has no end.
        left: seconds until the end of the run; None where that is not known.
    """

    def __init__(self, console: Console, done: int, total: int | None, left: Callable[[], float | None]) -> None:
        self._alarm = Text(style="bold red", no_wrap=True, overflow="ellipsis")
        self._numbers = Text(no_wrap=True, overflow="ellipsis")
        super().__init__(
            TextColumn("{task.description:>10}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Note(left),
            console=console,
            refresh_per_second=4,
        )
        self._run = self.add_task("", total=total, completed=done)
        self._part = self.add_task("", visible=False)
        self._name = ""
        self.start()

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, the numbers of the last step, and the last alarm."""
        yield from super().get_renderables()
        # A line of their own: on 80 columns there is no place beside the bar.
        yield from (line for line in (self._numbers, self._alarm) if line)

    def stage(self, name: str) -> None:
        """Name the stage of the present step."""
        if name != self.tasks[self._run].description:
            # Its step may be over before the next regular refresh.
            self.update(self._run, description=name, refresh=True)

    def step(self, done: int, stage: str, metrics: Mapping[str, float]) -> None:
        """A step is over, and has measured this."""
        self._numbers.plain = f"{'':>10} {numbers(metrics)}"
        self.update(self._run, completed=done)

    def part(self, name: str, done: int, of: int) -> None:
        """A part of the present step has come so far."""
        if name != self._name:
            self._name = name
            task = self.tasks[self._part]
            task.start_time, task.finished_time = self.get_time(), None  # `reset` would draw at once, which takes a step's time
        self.update(self._part, description=name, completed=done, total=of, unit=UNITS.get(name, ""), visible=True)

    def between_steps(self, name: str) -> None:
        """What the run does where no step goes on."""
        self._name = ""
        self.update(self._part, visible=False)
        self.stage(name)

    def alarm(self, text: str) -> None:
        """Show an alarm until the next one comes; it stays on the terminal when the run is over."""
        self._alarm.plain = f"{'alarm':>10} {text}"


class _Note(ProgressColumn):
    """The time left of the run, and the unit of a part."""

    def __init__(self, left: Callable[[], float | None]) -> None:
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        """What belongs behind the bar of a task."""
        if unit := task.fields.get("unit"):
            return Text(unit)
        left = self._left()
        return Text("" if left is None or task.finished else f"{duration(left)} left", style="progress.remaining")
