"""``vit-hub bench``: time a model on this machine against peers and other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import vit_hub
from vit_hub.cli.options import (
    RUNTIME_NAMES,
    Verb,
    compile_option,
    complete_source,
    compute_options,
    image_size_option,
    names_option,
    offline_option,
    runtime_option,
)
from vit_hub.cli.output import Output
from vit_hub.errors import ConfigError
from vit_hub.progress import step_bar

if TYPE_CHECKING:
    from vit_hub.benching import Timing
    from vit_hub.model.vit import VisionTransformer

_AGAINST = ("timm", "transformers", "onnxruntime", "openvino")
_DEFAULT = _AGAINST[:2]
_HEADER = ("task", "batch", "implementation", "time", "images/s", "speed-up", "of peak", "difference")
_MIB = 1 << 20

_EPILOG = """\b
Examples:
  vit-hub bench vit-b16
  vit-hub bench vit-s16 --batch-size 1,32 --dtype bfloat16
  vit-hub bench vit-s16 --against timm,transformers,onnxruntime,openvino --threads 4 --json
  vit-hub bench vit-l16 --device cuda --dtype bfloat16 --compile max-autotune
  vit-hub bench finetuned.safetensors --against none --json
"""


def _counts(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[int, ...]:
    """Parse numbers of images, separated by commas, in any number of options."""
    numbers = [number.strip() for text in texts for number in text.split(",")]
    wrong = [number for number in numbers if not number.isdecimal() or int(number) < 1]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r} is not a whole number from 1 on.")
    return tuple(map(int, numbers))


@click.command("bench", cls=Verb, short_help="Time forward passes against peers and runtimes.", epilog=_EPILOG)
@click.argument("model", shell_complete=complete_source)
@compute_options
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_counts,
    multiple=True,
    metavar="NUMBERS",
    default=("1,8,32",),
    show_default=True,
    help="Images per forward pass, separated by commas.",
)
@compile_option("vit-hub and the peers")
@runtime_option("What computes vit-hub's own rows; auto: the fastest for each number of images.")
@names_option(
    "--against",
    known=_AGAINST,
    default=_DEFAULT,
    help=f"Libraries and runtimes to compare with, separated by commas: {', '.join(_AGAINST)}; or none.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads of every implementation on processors. Default: one a core."
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="Measurements per row of the table.",
)
@image_size_option
@offline_option
def command(
    output: Output,
    model: str,
    compute_options: dict[str, Any],
    batch_sizes: tuple[int, ...],
    compile: str | None,
    runtime: str,
    against: tuple[str, ...],
    threads: int | None,
    rounds: int,
    image_size: tuple[int, int] | None,
    offline: bool,
) -> None:
    """Time forward passes on this machine against peers and other runtimes with the same weights.

    A model from the registry gets random weights: nothing is fetched, and times do not depend on the values. Any other
    MODEL is loaded. onnxruntime and openvino run programs that are exported once into the cache. A file of vit-hub
    export is timed alone, in its runtime.

    The implementations take turns in every round, and the table shows medians. "output" is the model's result (logits
    or an embedding), "features" are all tokens before pooling. "speed-up" is the time of the row divided by vit-hub's:
    above 1 vit-hub is faster. "of peak" is the model's arithmetic by the time and by the rate of a product of two large
    matrices in the same dtype, which is measured first. "difference" is the largest absolute difference from vit-hub's
    result, "memory" what passes took at their peak.
    """
    import torch

    from vit_hub.benching import OURS, TASKS, machine, peak_flops, time_forward, time_program
    from vit_hub.exporting.files import exported_file
    from vit_hub.model.device import usable_device

    device = usable_device(compute_options["device"])
    if threads is not None:
        torch.set_num_threads(threads)
    common: dict[str, Any] = {"batch_sizes": batch_sizes, "rounds": rounds}
    program = exported_file(model)
    if program is not None:
        if device.type != "cpu":
            raise ConfigError(f"{model}: an exported file runs on the processor", hint="leave out --device")
        if compile or runtime != RUNTIME_NAMES[0]:
            raise ConfigError(
                f"{model}: an exported file runs in its own runtime", hint="leave out --compile and --runtime"
            )
        program = program.in_dtype(compute_options["dtype"]).in_size(image_size)
        peak = peak_flops("cpu", program.model().patch_embed.proj.weight.dtype)
        size = program.image_size
        with step_bar("measuring", len(batch_sizes), show=not output.quiet) as advance:
            table = time_program(program, peak=peak, progress=advance, **common)
    else:
        net = _model(model, image_size, compute_options, offline, output)
        peak = peak_flops(device, net.patch_embed.proj.weight.dtype)
        size = net.config.image_size
        common |= {"against": against, "compile": compile, "runtime": runtime, "peak": peak}
        with step_bar("measuring", len(TASKS) * len(batch_sizes), show=not output.quiet) as advance:
            table = time_forward(net, progress=advance, **common)
    about = machine(compute_options["device"])
    if output.json:
        setup: dict[str, Any] = {"model": model, **compute_options, "compile": compile, "runtime": runtime}
        measured = {"image_size": size, "machine": about, "peak_flops": peak, "timings": table}
        output.document({**setup, **measured})
        return
    # A peer has the same problem in all its rows.
    for name, problem in {line.implementation: line.problem for line in table if line.problem}.items():
        output.warning(f"{name} is not measured: {problem}")
    memory = any(line.peak_memory is not None for line in table)
    header = (*_HEADER, "memory") if memory else _HEADER
    rows = [_row(line, memory) for line in table if line.seconds is not None]
    output.lines(output.table(header, rows, right=set(header) - {"task", "implementation"}))
    output.note(f"peak: {peak / 1e9:,.0f} GFLOP/s, a product of two matrices in this dtype")
    output.note(", ".join(f"{key} {value}" for key, value in about.items() if value))
    if len({line.implementation for line in table}) == 1:
        output.note(f"only {OURS} was measured")


def _model(
    name: str, image_size: tuple[int, int] | None, compute_options: dict[str, Any], offline: bool, output: Output
) -> VisionTransformer:
    """Load a file or repository; build a model with random weights where the registry has the config."""
    from vit_hub.hub.names.locate import local_path, locate

    entry = None if local_path(name) is not None else locate(name)[0]
    if entry is None:
        return vit_hub.load(name, image_size=image_size, **compute_options, offline=offline, progress=not output.quiet)
    import torch

    from vit_hub.converters.casting import torch_dtype

    torch.manual_seed(0)
    with torch.device(compute_options["device"]):
        model = vit_hub.VisionTransformer(entry.config)
    if image_size is not None:
        model.set_image_size(image_size)
    dtype = compute_options["dtype"]
    return model.to(torch_dtype("float32" if dtype == "auto" else dtype)).eval()


def _row(line: Timing, memory: bool) -> tuple[str, ...]:
    cells = (
        line.task,
        str(line.batch_size),
        line.implementation,
        f"{1000 * (line.seconds or 0):.2f} ms",
        f"{line.images_per_second:.1f}",
        f"{line.speedup:.2f}",
        f"{100 * (line.of_peak or 0):.1f} %",
        "-" if line.difference is None else f"{line.difference:.1e}",
    )
    return (*cells, f"{(line.peak_memory or 0) / _MIB:.0f} MiB") if memory else cells
