"""``vit-hub predict``: classify image files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.failures import FAILED, error_data
from vit_hub.cli.options import Verb, complete_source, compute_options, resize_options, source_options
from vit_hub.cli.output import Output
from vit_hub.errors import ConfigError, VitHubError

if TYPE_CHECKING:
    import torch

    from vit_hub.model.vit import VisionTransformer

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

_EPILOG = """\b
Examples:
  vit-hub predict vit-b16 cat.jpg dog.png
  vit-hub predict vit-b16 photos/ --top 1 --json
  vit-hub predict finetuned.safetensors photos/ --quiet
  vit-hub predict vit-b16 cat.jpg --image-size 384
"""


@click.command("predict", cls=Verb, short_help="Classify images.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Number of classes to print.")
@compute_options
@resize_options
@source_options
def command(
    output: Output,
    model: str,
    images: tuple[Path, ...],
    top: int,
    compute_options: dict[str, Any],
    resize_options: dict[str, Any],
    source_options: dict[str, Any],
) -> int:
    """Classify images: print the most probable classes of each.

    An IMAGE is a file that Pillow can read, or a folder, which stands for the image files directly in it. Images are
    preprocessed as the model's own project does it. If one cannot be read, the error goes to stderr, the others are
    classified nevertheless, and the exit status is 1. With --quiet, print one line per image: path, class and
    probability, separated by tabs.
    """
    from vit_hub.model.device import usable_device

    files = list(_expanded(images))
    usable_device(compute_options["device"])
    net = vit_hub.load(model, **resize_options, **compute_options, **source_options, progress=not output.quiet)
    _check_head(net, model)
    names = vit_hub.class_names(net)
    prepare = vit_hub.preprocess(net)
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            found.append({"image": file, "classes": _classes(net, prepare(file), names, top, file)})
        except VitHubError as error:
            found.append({"image": file, "error": error_data(error)})
            if not output.json:
                output.error(error_data(error))
            continue
        if not output.json:
            output.lines(_lines(output, found[-1]))
    if output.json:
        output.document({"model": model, "predictions": found})
    return FAILED if any("error" in item for item in found) else 0


def _expanded(images: Sequence[Path]) -> Iterator[Path]:
    """Yield the files themselves, and the image files of folders in alphabetical order.

    Raises:
        VitHubError: a folder has none.
    """
    for path in images:
        if not path.is_dir():
            yield path
            continue
        inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
        if not inside:
            raise VitHubError(
                f"{path}: no image file in this folder", hint=f"looked for {', '.join(sorted(_SUFFIXES))}"
            )
        yield from inside


def _check_head(model: VisionTransformer, source: str) -> None:
    """Raise ConfigError if there are no classes to name."""
    hint = "get embeddings instead: vit_hub.load(...).embed(images)"
    if not model.config.num_classes:
        raise ConfigError(f"{source} has no classification head", hint=hint)
    heads = [weights for name, weights in model.named_parameters() if name in ("head.weight", "head_dist.weight")]
    if not any(weights.any() for weights in heads):
        raise ConfigError(f"the classification head of {source} is all zeros: it was never trained", hint=hint)


def _classes(
    model: VisionTransformer, images: torch.Tensor, names: tuple[str, ...] | None, top: int, file: Path
) -> list[dict[str, Any]]:
    """Return the most probable classes of the image ``file``, given as ``images`` [1, C, h, w].

    Raises:
        VitHubError: the outputs are NaN or infinite.
    """
    import torch

    weights = model.patch_embed.proj.weight
    with torch.inference_mode():
        logits = model(images.to(weights.device, weights.dtype))[0].float()
    if not logits.isfinite().all():
        raise VitHubError(
            f"{file}: the model's outputs are not finite", hint="`vit-hub inspect MODEL --values` looks for NaN in it"
        )
    best = logits.softmax(-1).topk(min(top, len(logits)))
    return [
        {"index": index, "name": names[index] if names else None, "probability": probability}
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _lines(output: Output, prediction: dict[str, Any]) -> list[str]:
    rows = [(item["name"] or f"class {item['index']}", item["probability"]) for item in prediction["classes"]]
    if output.quiet:
        return [f"{prediction['image']}\t{rows[0][0]}\t{rows[0][1]:.4f}"]
    return [output.heading(str(prediction["image"])), *(f"  {share:7.2%}  {name}" for name, share in rows)]
