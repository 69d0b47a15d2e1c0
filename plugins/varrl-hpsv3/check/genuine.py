"""Ask this plugin's reward, on hpsv3's own code and the tiny checkpoint, all that it promises; prints what it found."""

from __future__ import annotations

import pickle
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from varrl_hpsv3 import HPSv3, HPSv3Error, model
from varrl_hpsv3.inputs import as_pictures

from varrl_lightning.registry import REWARDS, available, build
from varrl_lightning.rewards.base import score_images
from varrl_lightning.types import Prompt, Scores

FAILED: list[str] = []
TEXTS = ["a red square", 'the word "HELLO" on a wall, by a very long description', "a cat", "{braces} and 50%"]


def report(what: str, holds: bool, found: object) -> None:
    """One line for each promise."""
    print(f"{'ok  ' if holds else 'FAIL'} {what}: {found}", flush=True)
    if not holds:
        FAILED.append(what)


def numbers(tensor: Tensor) -> list[float]:
    """For printing."""
    return [round(x, 4) for x in tensor.flatten().tolist()]


def raised(what: str, expected: str, call: Callable[..., object], *arguments: object, **named: object) -> None:
    """A failure that must be explained."""
    try:
        call(*arguments, **named)
    except Exception as error:
        explained = isinstance(error, (HPSv3Error, TypeError, FileNotFoundError)) and expected in str(error)
        report(what, explained, f"{type(error).__name__}: {str(error)[:150]}...")
    else:
        report(what, False, "nothing was raised")


def check_scores(reward: HPSv3, images: Tensor, prompts: Sequence[Prompt]) -> Scores:
    """The answer's form, and that it is hpsv3's own."""
    loaded = {name.partition(".")[0] for name in sys.modules} & {"hpsv3", "trl", "lightning", "rapidocr"}
    report("nothing is loaded before the first use", not loaded, sorted(loaded) or "no hpsv3, trl, lightning or rapidocr")
    start = time.perf_counter()
    first = score_images(reward, images, prompts, "hpsv3")
    mu, sigma = first.components["mu"], first.components["sigma"]
    report(
        "mu",
        tuple(mu.shape) == (4,) and torch.equal(first.values, mu),
        f"{numbers(mu)}, {time.perf_counter() - start:.1f} s with loading",
    )
    report("sigma", bool((sigma > 0).all()), numbers(sigma))
    report("images and prompts matter", mu.std().item() > 1e-3, f"standard deviation of mu {mu.std():.4f}")
    raw = reward._inferencer(images.device).reward(image_paths=as_pictures(images), prompts=TEXTS).detach()
    report("hpsv3's own call: mu, log sigma", torch.equal(raw[:, 0], mu) and torch.equal(raw[:, 1].exp(), sigma), numbers(raw))
    return first


def check_repeats(reward: HPSv3, files: dict[str, str], images: Tensor, prompts: Sequence[Prompt], first: Scores) -> None:
    """The same answer again, in a copy, one by one, with a share of sigma, and in the published precision."""
    start = time.perf_counter()
    again = reward(images, prompts).values
    report("deterministic", torch.equal(again, first.values), f"{time.perf_counter() - start:.1f} s for 4 images")
    copy = pickle.loads(pickle.dumps(reward))
    report("a pickled copy loads for itself", copy._opened is None and torch.equal(copy(images, prompts).values, again), "equal")
    singly = HPSv3(**files, batch_size=1)(images, prompts).values
    report(
        "one by one as in a batch",
        (singly - again).abs().max().item() < 1e-4,
        f"largest difference {(singly - again).abs().max():.1e}",
    )
    cautious = HPSv3(**files, uncertainty=0.5)(images, prompts).values
    gap = (cautious - (first.components["mu"] - 0.5 * first.components["sigma"])).abs().max().item()
    report("mu - 0.5 sigma", gap < 1e-5, f"largest difference {gap:.1e}")
    parameters = reward._inferencer(images.device).model.parameters()
    report("no graph is kept", not (again.requires_grad or any(p.requires_grad for p in parameters)), "no gradient")
    half = HPSv3(**{**files, "config_path": files["config_path"].replace("float32", "published")})
    gap = (half(images, prompts).values - again).abs().max().item()
    report("the published settings (bfloat16) on a CPU", gap < 0.1, f"largest difference {gap:.1e}, of weights rounded to bfloat16")


def check_prompts(reward: HPSv3, images: Tensor, first: Scores) -> None:
    """Special tokens are taken out; what would happen otherwise."""
    for token in ("<|Reward|>", "<|image_pad|>", "<|im_end|>", "<|<|Reward|>Reward|>"):
        spoilt = [Prompt(f"{token}{text}{token}") for text in TEXTS]
        report(f"{token} is taken out", torch.equal(reward(images, spoilt).values, first.values), "the same scores")
    inferencer, picture = reward._inferencer(images.device), as_pictures(images[:1])
    answer = tuple(inferencer.reward(image_paths=picture, prompts=["a <|Reward|> b"]).shape)
    report("hpsv3 itself answers <|Reward|> with", answer == (1, 4), answer)
    raised("an answer of another shape", "expected (1, 2)", model.ask, inferencer, picture, ["a <|Reward|> b"])
    raised("a path instead of an image", "PIL images only", model.ask, inferencer, ["/etc/hostname"], ["a"])


def check_errors(files: dict[str, str], images: Tensor, prompts: Sequence[Prompt]) -> None:
    """What is said without weights, without a base model, with another model's weights, and of a wrong path."""
    config, checkpoint = files["config_path"], Path(files["checkpoint_path"])
    raised("no weights, no network", "HPSv3.safetensors", HPSv3(config_path=config), images, prompts)
    raised("no base model, no network", "model_name_or_path", HPSv3(checkpoint_path=checkpoint), images, prompts)
    lost = checkpoint.with_name("lost.yaml")
    lost.write_text(Path(config).read_text().replace(str(checkpoint.parent), "/nowhere"))
    raised(
        "a base model that is not there", "model_name_or_path", HPSv3(config_path=lost, checkpoint_path=checkpoint), images, prompts
    )
    headless = checkpoint.with_name("headless.safetensors")
    save_file({name: tensor for name, tensor in load_file(checkpoint).items() if "rm_head" not in name}, headless)
    raised("another model's weights", "does not fit", HPSv3(config_path=config, checkpoint_path=headless), images, prompts)
    raised("a file that is not there", "must be a file", HPSv3, checkpoint_path="nowhere.safetensors")


def main(folder: Path) -> int:
    """Run all checks; the exit status."""
    # hpsv3 says this at each call of its own on a CPU; the plugin keeps it quiet by itself.
    warnings.filterwarnings("ignore", "CUDA is not available", UserWarning, module="hpsv3")
    files = {"config_path": str(folder / "float32.yaml"), "checkpoint_path": str(folder / "tiny.safetensors")}
    torch.manual_seed(1)
    images, prompts = torch.rand(4, 3, 64, 64), [Prompt(text) for text in TEXTS]
    images[1] *= 0.2
    report("registered", "hpsv3" in available(REWARDS), available(REWARDS).get("hpsv3"))
    reward = build(REWARDS, {"class_path": "hpsv3", "init_args": files})
    first = check_scores(reward, images, prompts)
    check_repeats(reward, files, images, prompts, first)
    check_prompts(reward, images, first)
    check_errors(files, images, prompts)
    print("FAILED: " + ", ".join(FAILED) if FAILED else "all checks passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
