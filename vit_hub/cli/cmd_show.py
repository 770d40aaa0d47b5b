"""``vit-hub show``: pictures of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit_hub.cli.options import (
    Verb,
    complete_source,
    force_option,
    loading_options,
)
from vit_hub.cli.output import Output

# As in vit_hub.pictures.KINDS, whose import costs torch's.
KINDS = (
    *("top", "rollout", "heads", "pca", "norms", "distance"),
    *("filters", "positions", "rope", "relative", "resize", "cka"),
)
_EPILOG = """\b
Pictures:
  top        the five most probable classes of each image
  rollout    attention rollout over the image
  heads      attention of each head to the image
  pca        principal components of the patch tokens as colours, one basis for all images
  norms      lengths of the tokens after each block
  distance   mean attention distance of each head by depth
  filters    principal components of the patch filters
  positions  cosine similarity of the position table
  rope       similarity by distance of rotary positions
  relative   relative position biases by offset
  resize     what resizing does to the position table
  cka        similarity of the blocks of one model or two

\b
Examples:
  vit-hub show vit-b16 cat.jpg -o b16.html                         one page with all pictures
  vit-hub show dinov2-s14 a.jpg b.jpg -o pca.png --what pca        colours that mean the same in both
  vit-hub show weights.pth -o pictures/                            a folder; without images those of the weights
  vit-hub show a.npz cat.jpg --against b_hf/ --what cka -o cka.png compare block by block
"""


def _chosen(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[str]:
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise click.BadParameter(f"there is no picture {name!r}; pictures: {', '.join(KINDS)}.")
    return names


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    done, comma, last = incomplete.rpartition(",")
    return [done + comma + name for name in KINDS if name.startswith(last)]


@click.command("show", cls=Verb, short_help="Make pictures of a model.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("images", nargs=-1, metavar="[IMAGE...]", type=click.Path())
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="OUT.html: one page with all pictures and the model's facts, which fetches nothing; OUT.png: one image; else "
    "a folder with an image of each kind.",
)
@click.option(
    "--what",
    multiple=True,
    callback=_chosen,
    shell_complete=_complete,
    metavar="PICTURES",
    help="Make only these, with commas between them. Default: all that apply.",
)
@click.option(
    "--against",
    metavar="SOURCE",
    shell_complete=complete_source,
    help="Compare the blocks with those of this model (cka), from the same images; --set applies to both.",
)
@click.option(
    "--max-patches",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Let each image keep its aspect ratio, with at most so many patches.",
)
@force_option
@loading_options
def command(
    output: Output,
    model: str,
    images: tuple[str, ...],
    out: Path,
    what: list[str],
    against: str | None,
    max_patches: int | None,
    force: bool,
    loading_options: dict[str, Any],
) -> None:
    """Make pictures of a model: of its weights, and of what it does with images.

    An IMAGE is a file, a folder, a pattern, a tar shard, a parquet file or an http(s) address; the first six images are
    shown, cropped as the model sees them. What does not apply to a model is left out, and said with its reason.
    matplotlib is needed: pip install 'vit-hub[plots]'.
    """
    from vit_hub.pictures import check_destination, show

    check_destination(out, what or KINDS, overwrite=force)
    if max_patches is not None:
        loading_options["max_patches"] = max_patches
    shown = show(
        model,
        images,
        what=what,
        against=against,
        progress=not output.quiet,
        **loading_options,
    )
    files = shown.write(out, overwrite=force)
    if output.json:
        pictures = [{"kind": each.kind, "title": each.title, "path": files[each.kind]} for each in shown.pictures]
        output.document({"model": model, "pictures": pictures, "left_out": shown.left_out})
        return
    for kind, reason in shown.left_out.items():
        output.announce(f"left out: {kind}: {reason}")
    if output.quiet:
        output.lines([str(out)])
        return
    output.lines([output.heading(str(out)), *output.fields((each.kind, each.title) for each in shown.pictures)])
