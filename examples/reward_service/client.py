"""A client of the reward service in nothing but Python's standard library: PNG files and a prompt in, the answer out.

    python -m varrl_lightning serve ocr --port 8000
    python examples/reward_service/client.py http://127.0.0.1:8000 --prompt '"HELLO"' picture.png another.png

VARRL_API_KEY is sent when it is set. See PROTOCOL.md, beside this file, for what is said.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def ask(url: str, images: list[bytes], prompt: str, key: str | None) -> dict[str, Any]:
    question = {"images": [base64.b64encode(png).decode("ascii") for png in images], "prompts": [{"text": prompt}] * len(images)}
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    request = urllib.request.Request(f"{url}/predict", json.dumps(question).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    if len(answer["values"]) != len(images):
        raise ValueError(f"{len(answer['values'])} values for {len(images)} images")
    return answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("images", nargs="+", type=Path, help="PNG files, 8-bit RGB")
    parser.add_argument("--prompt", required=True)
    options = parser.parse_args()
    try:
        answer = ask(options.url, [path.read_bytes() for path in options.images], options.prompt, os.environ.get("VARRL_API_KEY"))
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read().decode()}", file=sys.stderr)
        return 1
    for path, value, error in zip(options.images, answer["values"], answer["errors"], strict=True):
        print(f"{path}: {value if error is None else error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
