"""`varrl serve`: serves a reward over HTTP, so that it may have its own environment, machine and GPU."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Any

from varrl_lightning.errors import FAILED, USE, PluginError
from varrl_lightning.registry import REWARDS, check
from varrl_lightning.rewards.http_request import HEALTH, KEY_HEADER, PATH, PROTOCOL, Limits

if TYPE_CHECKING:
    from varrl_lightning.serving.api import RewardAPI

KEY = "VARRL_API_KEY"
HERE = "127.0.0.1"
HOSTS = (HERE, "0.0.0.0", "::")
LONGEST_WAIT = 300.0
"""Seconds that a request may take in total."""


def main(arguments: Sequence[str]) -> int:
    """Run until Ctrl-C or SIGTERM; exit status 2 for a wrong command line, 1 when the service cannot start."""
    options = _parser().parse_args(arguments)
    try:
        init_args = _init_args(options)
        limits = Limits(options.max_body, options.max_images, options.max_pixels)
        _check(options)
        check(REWARDS, {"class_path": options.name, "init_args": init_args})
    except (ValueError, PluginError) as error:
        print(f"varrl: {error}", file=sys.stderr)
        return USE
    try:
        _serve(options, init_args, limits)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"varrl: {_advice(error)}", file=sys.stderr)
        return FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="varrl serve",
        description="Serve a reward over HTTP (examples/reward_service/PROTOCOL.md); the reward 'http' is its client.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("name", help="a reward's plugin name, or package.module.Class")
    add("--init_args", default="{}", help="arguments of its constructor, a JSON object: '{\"detect\": false}'")
    add("--port", type=int, required=True, help="1024 to 65535")
    add("--host", default=HERE, help=f"{', '.join(HOSTS)}; all but {HERE} need a key (default: {HERE})")
    add("--api_key", default=None, help=f"clients send it as {KEY_HEADER}; better in the environment as {KEY}")
    add(
        "--devices",
        type=int,
        default=1,
        help="number of workers, each with a copy of the reward; on GPUs, one per GPU (default: 1)",
    )
    add("--accelerator", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--max_batch_size", type=int, default=8, help="requests (groups) scored together; 1 for no batching (default: 8)")
    add("--batch_timeout", type=float, default=0.01, help="seconds to wait for more requests (default: .01)")
    add("--max_body", type=int, default=limits.body, help=f"most bytes of a request (default: {limits.body})")
    add("--max_images", type=int, default=limits.images, help=f"most images of a request (default: {limits.images})")
    add(
        "--max_pixels",
        type=int,
        default=limits.pixels,
        help=f"most pixels of a request, over all images (default: {limits.pixels})",
    )
    return parser


def _init_args(options: argparse.Namespace) -> dict[str, Any]:
    try:
        init_args = json.loads(options.init_args)
    except ValueError as error:
        raise ValueError(f"--init_args must be a JSON object, got {options.init_args!r}: {error}") from error
    if not isinstance(init_args, dict):
        raise ValueError(f"--init_args must be a JSON object, got {options.init_args!r}")
    return init_args


def _check(options: argparse.Namespace) -> None:
    options.api_key = options.api_key if options.api_key is not None else os.environ.get(KEY) or None
    if options.host not in HOSTS:
        raise ValueError(f"--host must be one of {', '.join(HOSTS)}, got {options.host!r}")
    if options.host != HERE and options.api_key is None:
        raise ValueError(f"--host {options.host} lets other machines in and needs a key: set {KEY}, or give --api_key")
    if options.api_key is not None and not (
        options.api_key.isascii() and options.api_key.isprintable() and options.api_key.strip()
    ):
        raise ValueError("the API key must be printable ASCII, since it is sent in a header")
    if not 1024 <= options.port <= 65535:
        raise ValueError(f"--port must be from 1024 to 65535, got {options.port}")
    for name in ("devices", "max_batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.batch_timeout < LONGEST_WAIT:
        raise ValueError(f"--batch_timeout must be from 0 to {LONGEST_WAIT:g} seconds, got {options.batch_timeout}")
    kinds = ("auto", "cpu", "cuda", "mps")
    if options.accelerator not in kinds:
        raise ValueError(f"--accelerator must be one of {', '.join(kinds)}, got {options.accelerator!r}")


def _serve(options: argparse.Namespace, init_args: Mapping[str, Any], limits: Limits) -> None:
    from litserve import LitServer

    from varrl_lightning.serving.api import RewardAPI
    from varrl_lightning.serving.gate import Gate

    _check_port(options.host, options.port)
    api = RewardAPI(options.name, init_args, limits, options.max_batch_size, options.batch_timeout)
    stop = _Stop(api)
    logging.getLogger("litserve.server").addFilter(stop.is_worth_logging)
    on_cpu = options.accelerator == "cpu"
    gate = {"limits": limits, "api_key": options.api_key, "timeout": LONGEST_WAIT}
    server = LitServer(
        api,
        accelerator=options.accelerator,
        devices=1 if on_cpu else options.devices,
        workers_per_device=options.devices if on_cpu else 1,
        timeout=LONGEST_WAIT,
        middlewares=[(Gate, gate)],
        model_metadata={"protocol": PROTOCOL, "reward": options.name, "limits": asdict(limits)},
        disable_openapi_url=True,
        restart_workers=True,
    )
    access = "with a key" if options.api_key else "without a key"
    print(f"varrl: serving {options.name} {access} at http://{options.host}:{options.port}{PATH}, health page {HEALTH}", flush=True)
    server.run(host=options.host, port=options.port, log_level="warning", num_api_servers=1, generate_client_file=False)


class _Stop:
    """Handles Ctrl-C and SIGTERM: the first ends the service in order, so that requests are answered and no process is left."""

    def __init__(self, api: RewardAPI) -> None:
        self.api = api
        self.process = os.getpid()
        self.wanted = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:  # in a fork: the HTTP server, after it has shut down
            os._exit(0)
        if not self.wanted:
            self.wanted = self.api.ending = True
            raise KeyboardInterrupt  # LitServe shuts down on it

    def is_worth_logging(self, record: logging.LogRecord) -> bool:
        """False for errors while the service ends: the thread that watches the workers reports that they are gone."""
        return not self.wanted or record.levelno < logging.ERROR


def _check_port(host: str, port: int) -> None:
    """Check the port before the reward is loaded: LitServe would exit the program itself."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(f"port {port} of {host} cannot be used: {error.strerror}. Give another --port.") from error


def _advice(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"the reward service needs LitServe: pip install 'varrl-lightning[serve]' ({error})"
    if isinstance(error, RuntimeError):
        return f"the service has not started: {error}. The reason stands above."
    return str(error)
