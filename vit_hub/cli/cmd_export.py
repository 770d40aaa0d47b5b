"""``vit-hub export``: write a model as a program for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vit_hub.cli.description import config_data
from vit_hub.cli.options import Verb, complete_source, image_size_option, source_options
from vit_hub.cli.output import Output, amount

_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "openvino": ".xml"}
_EPILOG = """\b
Examples:
  vit-hub export vit-b16 b16.onnx
  vit-hub export dinov2-s14 s14.onnx --dynamic              images of any size
  vit-hub export vit-b16 b16.xml --dtype float16            OpenVINO, half the size
  vit-hub export finetuned.safetensors app.onnx --with-preprocess --int8
"""


@click.command("export", cls=Verb, short_help="Write a model as a program for another runtime.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@click.argument("destination", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT")
@click.option(
    "--to",
    type=click.Choice(list(_SUFFIXES)),
    metavar="TARGET",
    help=f"{', '.join(f'{name} ({suffix})' for name, suffix in _SUFFIXES.items())}. Default: what OUT ends with.",
)
@click.option(
    "--what",
    metavar="OUTPUT",
    default="output",
    show_default=True,
    help="output (what the model returns), embedding (pooled), logits, projection (CLIP's), tokens (all, before "
    "pooling), or block:N (as block N leaves them).",
)
@image_size_option
@click.option("--dynamic", is_flag=True, help="Take images of any size in whole patches, instead of one size.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Dtype to compute in. Input and output stay float32.",
)
@click.option("--int8", is_flag=True, help="Store matrices with 8 bits, quantized by the runtime's own tool.")
@click.option(
    "--with-preprocess",
    is_flag=True,
    help="Take pixels, uint8 [batch, height, width, channels], and normalise them in the program.",
)
@click.option("--opset", type=click.IntRange(min=18), metavar="N", help="Version of ONNX's operators.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Largest difference from the model, relative to the largest value of its output. Default: 1e-4, for float16 "
    "1e-2, bfloat16 5e-2, int8 0.2.",
)
@source_options
def command(
    output: Output,
    model: str,
    destination: Path,
    source_options: dict[str, Any],
    **options: Any,
) -> None:
    """Write a model as a program, run it in its runtime, and keep it if its outputs are the model's.

    OUT takes any batch size. Its input is images as `vit_hub.preprocess` gives them, its output what the model gives,
    or --what. The file's metadata hold the config, the record of where the weights come from, and the class names. It
    is run on several batches; above the tolerance nothing is written.
    """
    from vit_hub.exporting.export import export

    report = export(model, destination, **options, **source_options, progress=not output.quiet)
    if output.json:
        output.document({**vars(report), **config_data(report.config)})
        return
    for message in report.warnings:
        output.warning(message)
    output.lines([str(report.path)])
    if not output.quiet:
        output.lines(
            output.fields(
                [
                    ("target", f"{report.to}, {report.dtype}"),
                    ("output", report.what),
                    ("size", amount(report.size, "B")),
                    (
                        "largest difference",
                        f"{report.difference:.1e} of the largest output (at most {report.tolerance:.0e})",
                    ),
                    ("compared on", ", ".join("x".join(map(str, shape)) for shape in report.compared)),
                ]
            )
        )
