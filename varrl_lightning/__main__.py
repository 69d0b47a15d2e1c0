"""The command line, `varrl` or `python -m varrl_lightning`: finds the command, and only then imports what it needs."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "fit": ("commands.cli", "train a policy; a first one: varrl fit --config configs/quickstart.yaml"),
    "validate": ("commands.cli", "sample and score the validation prompts"),
    "test": ("commands.cli", "sample and score the test prompts; tables beside the paper's, test.json, test.md, pairs"),
    "predict": ("commands.cli", "sample images: --prompt '\"HELLO\"' (or --data.predict FILE) --output FOLDER"),
    "doctor": ("commands.doctor", "check a config before training: plugins, weights, ratio, sampler, dropout, reward"),
    "list": ("commands.list", "show what is installed: varrl list rewards, masks, policies or configs"),
    "agreement": (
        "commands.agreement",
        "measure how far gradients of independent batches agree, for a recipe or for parts of the method",
    ),
    "conflict": ("commands.conflict", "show whether the scales' gradients pull against each other, and which m splits them best"),
    "variance": ("commands.variance", "say for each m what decides the rewards, and what K and the suffix are worth"),
    "export": ("commands.export", "write a run's policy as one file in its family's published layout"),
    "serve": ("commands.serve", "serve a reward over HTTP: varrl serve ocr --port 8000; its client is the reward 'http'"),
    "samples": (
        "commands.samples",
        "list and show the images that a run was trained on: varrl samples RUN --where 'advantage < -1'",
    ),
    "report": ("commands.report", "write the page of a run, or of several: one HTML file; draw the figures again"),
    "compare": (
        "comparison",
        "compare recipes over seeds, at equal time, images or updates: varrl compare configs/comparison.yaml",
    ),
}


def usage() -> str:
    """The text of `varrl --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: varrl COMMAND [--config FILE] [--model.ARGUMENT VALUE ...]",
            "",
            "Reinforcement learning for next-scale (VAR) image generators.",
            "",
            *lines,
            "",
            "'varrl COMMAND --help' lists every argument, 'varrl COMMAND --config FILE --print_config' the whole configuration.",
            "Errors of a user's making are one message; VARRL_DEBUG=1 adds the traceback.",
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 for a wrong command line or configuration, 1 otherwise."""
    if arguments is None:
        arguments = sys.argv[1:]
        # A class path may name a file of the current folder: `python -m` searches it, the script `varrl` would not.
        sys.path.insert(0, os.getcwd())
    command, *rest = [*arguments] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command == "--version":
        from importlib.metadata import version

        print(version("varrl-lightning"))
        return 0
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"varrl: no command {command!r}.{hint} There are: {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    module = COMMANDS[command][0]
    run = importlib.import_module(f"varrl_lightning.{module}").main
    return int(run([command, *rest] if module == "commands.cli" else rest))


if __name__ == "__main__":
    sys.exit(main())
