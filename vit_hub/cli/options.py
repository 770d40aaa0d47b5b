"""Arguments and options that several verbs share."""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from vit_hub.cli.output import Output
from vit_hub.cli.settings import parse_size, set_option
from vit_hub.model.config import RESIZE_METHODS
from vit_hub.untrusted import quoted

__all__ = [
    "Verb",
    "compile_option",
    "complete_source",
    "compute_options",
    "device_option",
    "force_option",
    "format_option",
    "image_size_option",
    "loading_options",
    "lockfile_option",
    "names_option",
    "offline_option",
    "patch_size_option",
    "resize_options",
    "revision_option",
    "running_options",
    "runtime_option",
    "selection_options",
    "sign_option",
    "source_format_option",
    "source_options",
    "test_option",
    "verbose_option",
]

# As in vit_hub.preprocessing.spec and vit_hub.exporting.runtimes, whose imports cost numpy's and torch's.
INTERPOLATION_NAMES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
RUNTIME_NAMES = ("torch", "onnxruntime", "openvino", "auto")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Verb(click.Command):
    """Command that gets an :class:`Output` first, with the options that set it up."""

    def __init__(self, *, callback: Callable[..., Any], **options: Any) -> None:
        super().__init__(callback=click.make_pass_decorator(Output)(callback), **options)
        self.params += [
            _switch("json", "--json", help="Print one JSON document, errors included."),
            _switch("quiet", "-q", "--quiet", help="Print only the result and errors, in the shortest form."),
            _switch("debug", "--debug", help="Show the traceback of an error."),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, of which a program that calls this one may make some that no shell can."""
        for argument in args:
            try:
                given = os.fsencode(argument)
            except UnicodeEncodeError:
                given = b"\0"
            if b"\0" in given:
                raise click.UsageError(f"{quoted(argument)} is no text that a name can have", ctx)
        return super().parse_args(ctx, args)


def _switch(attribute: str, *names: str, help: str) -> click.Option:
    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(Output), attribute, True)

    return click.Option(names, is_flag=True, expose_value=False, is_eager=True, callback=remember, help=help)


def complete_source(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete names of the registry, and files."""
    from vit_hub.weights_manifest import outlines

    names = (name for outline in outlines().values() for name in (outline.id, *outline.aliases))
    found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return [*found, CompletionItem(incomplete, type="file")]


def sign_option(help: str) -> Callable[[_Command], _Command]:
    """Make the option ``--sign KEY``."""
    return click.option(
        "--sign", "key", metavar="KEY", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=help
    )


def format_option(*names: str, help: str, default: str | None = None) -> Callable[[_Command], _Command]:
    """Make an option that takes a name of :func:`vit_hub.converters.format_names`."""
    return click.option(
        *names,
        metavar="FORMAT",
        default=default,
        show_default=default is not None,
        type=_known_format,
        shell_complete=_complete_format,
        help=help,
    )


def _known_format(name: str) -> str:
    from vit_hub.converters.formats import format_meant, format_names

    if name not in format_names():
        meant = format_meant(name)
        asked = f", {meant}" if meant.endswith("?") else f"; {meant}." if meant else "."
        formats = ", ".join(known for known in format_names() if "-" not in known)
        raise click.BadParameter(f"there is no format {name!r}{asked} Formats: {formats}.")
    return name


def _complete_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from vit_hub.converters import format_names

    return [name for name in format_names() if name.startswith(incomplete)]


def names_option(
    *names: str, known: tuple[str, ...], default: tuple[str, ...], help: str
) -> Callable[[_Command], _Command]:
    """Make an option that takes names, separated by commas, or ``none``."""

    def parse(text: str) -> tuple[str, ...]:
        found = tuple(name.strip() for name in text.split(",") if name.strip() and name.strip() != "none")
        wrong = [name for name in found if name not in known]
        if wrong:
            raise click.BadParameter(f"{wrong[0]!r} is none of {', '.join(known)}, nor none.")
        return found

    return click.option(*names, metavar="NAMES", default=",".join(default), show_default=True, type=parse, help=help)


source_format_option = format_option(
    "--format", help="Read the source as this format instead of recognising it by its content."
)


def lockfile_option(help: str) -> Callable[[_Command], _Command]:
    """Make an option that takes a lock file; None stands for the one in the working folder."""
    return click.option(
        "--lockfile",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"{help} Default: vit-hub.lock in the working folder.",
    )


def compile_option(what: str = "the model") -> Callable[[_Command], _Command]:
    """Make an option that compiles something, in one of torch's modes."""
    return click.option(
        "--compile",
        is_flag=False,
        flag_value="default",
        type=click.Choice(COMPILE_MODES),
        metavar="[MODE]",
        help=f"Compile {what} with torch.compile, in one of its modes: {', '.join(COMPILE_MODES)}.",
    )


def runtime_option(help: str) -> Callable[[_Command], _Command]:
    """Make an option that names what computes, PyTorch unless it is given."""
    return click.option(
        "--runtime", type=click.Choice(RUNTIME_NAMES), default=RUNTIME_NAMES[0], show_default=True, help=help
    )


force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Print all of the config, and where each field came from."
)
revision_option = click.option(
    "--revision",
    metavar="REVISION",
    help="Branch, tag or commit of the Hugging Face repository, instead of the pinned one.",
)


def _require_hashes(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    """Set ``VIT_HUB_REQUIRE_HASHES`` while the command runs."""
    if not given:
        return
    name = "VIT_HUB_REQUIRE_HASHES"
    before = os.environ.get(name, "")  # empty means not set
    os.environ[name] = "1"
    context.call_on_close(lambda: os.environ.update({name: before}))


def offline_option(command: _Command) -> _Command:
    """Add the options of everything that fetches weights by their name: ``--offline``, and ``--require-hashes``."""
    hashes = click.option(
        "--require-hashes",
        is_flag=True,
        expose_value=False,
        callback=_require_hashes,
        help="Refuse weights whose hash neither the registry nor a lock file pins.",
    )
    offline = click.option("--offline", is_flag=True, help="Open no connection; use only files on this machine.")
    return offline(hashes(command))


def _size(text: str) -> tuple[int, int]:
    """Parse a size given as one number for both sides, or as height and width."""
    try:
        size = parse_size(text)
    except ValueError:
        size = (0, 0)
    if min(size) < 1:
        raise click.BadParameter(f"{text!r} is not a size; write 384 or 384x512: height, then width.")
    return size


image_size_option = click.option(
    "--image-size",
    type=_size,
    metavar="SIZE",
    help="Change the image size in pixels, such as 384 or 384x512; position tables are resized.",
)
patch_size_option = click.option(
    "--patch-size",
    type=_size,
    metavar="SIZE",
    help="Change the patch size in pixels; the grid of patches stays the same unless --image-size is given, too.",
)


def _together(argument: str, **options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Make one decorator of several options; the command gets their values as the dict ``argument``."""

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def gathered(*args: Any, **values: Any) -> Any:
            group = {name: values.pop(name) for name in options}
            return command(*args, **values, **{argument: group})

        found = cast(_Command, gathered)
        for option in reversed(options.values()):
            found = option(found)
        return found

    return decorate


_source_options = _together(
    "source_options",
    format=source_format_option,
    overrides=set_option,
    prefix=click.option(
        "--prefix",
        metavar="PREFIX",
        help="Read the model whose tensor names begin with PREFIX, such as student, where a file holds several.",
    ),
    base=click.option(
        "--base",
        metavar="SOURCE",
        shell_complete=complete_source,
        help="Merge an adapter of peft into this model, instead of the one that it names.",
    ),
    head=click.option(
        "--head",
        metavar="FILE",
        shell_complete=complete_source,
        help="Join a linear head that is a file of its own, such as dinov2_vits14_linear_head.pth, with the model.",
    ),
    dequantize=click.option(
        "--dequantize",
        is_flag=True,
        help="Compute floating-point weights of quantized ones: bitsandbytes' 8 and 4 bits, 8-bit floats.",
    ),
    revision=revision_option,
    locked=click.option(
        "--locked", is_flag=True, help="Take exactly the files in the lock file, and hash all of them."
    ),
    lockfile=lockfile_option("Lock file for --locked."),
    offline=offline_option,
)


def source_options(command: _Command) -> _Command:
    """Add options for reading a checkpoint; the command gets them as :func:`vit_hub.open_checkpoint` takes them."""

    @functools.wraps(command)
    def given(*args: Any, source_options: dict[str, Any], **values: Any) -> Any:
        options = dict(source_options)
        lockfile = options.pop("lockfile")
        if lockfile and not options["locked"]:
            raise click.UsageError("--lockfile is for --locked")
        options["locked"] = lockfile or options["locked"]
        return command(*args, source_options=options, **values)

    return _source_options(cast(_Command, given))


resize_options = _together(
    "resize_options",
    image_size=image_size_option,
    patch_size=patch_size_option,
    resize=click.option(
        "--resize",
        type=click.Choice(["source", *RESIZE_METHODS]),
        metavar="METHOD",
        default="source",
        show_default=True,
        help="Method for resizing position tables: source is that of the checkpoint's own project; the others are "
        f"{', '.join(RESIZE_METHODS)}.",
    ),
)
"""Options for another image or patch size, as :func:`vit_hub.load` takes them."""
device_option = click.option(
    "--device", metavar="DEVICE", default="cpu", show_default=True, help="Device to compute on, such as cuda or mps."
)
compute_options = _together(
    "compute_options",
    device=device_option,
    dtype=click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16", "auto"]),
        default="float32",
        show_default=True,
        help="Dtype to compute in; auto is the stored one.",
    ),
)
"""Options for the device and dtype to compute in, as :func:`vit_hub.load` takes them."""


def _numbers(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """Parse one number for all channels, or one for each."""
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a number, or three with commas: 0.485,0.456,0.406.") from None


_preprocess_options = _together(
    "preprocess_options",
    mean=click.option(
        "--mean", callback=_numbers, metavar="NUMBERS", help="Mean of the channels, instead of the checkpoint's own."
    ),
    std=click.option(
        "--std", callback=_numbers, metavar="NUMBERS", help="Standard deviation of the channels, likewise."
    ),
    interpolation=click.option(
        "--interpolation", type=click.Choice(INTERPOLATION_NAMES), help="Filter that resizes images, likewise."
    ),
    crop_pct=click.option(
        "--crop-pct",
        type=click.FloatRange(0, 1, min_open=True),
        help="Share of the resized image that is kept, likewise.",
    ),
    crop_mode=click.option("--crop-mode", type=click.Choice(CROP_MODES), help="How images are fitted, likewise."),
)


def preprocess_options(command: _Command) -> _Command:
    """Add options of the preprocessing; the command gets those that are given, as ``preprocess_options``."""

    @functools.wraps(command)
    def given(*args: Any, preprocess_options: dict[str, Any], **values: Any) -> Any:
        chosen = {name: value for name, value in preprocess_options.items() if value is not None}
        return command(*args, preprocess_options=chosen, **values)

    return _preprocess_options(cast(_Command, given))


def loading_options(command: _Command) -> _Command:
    """Add options for loading a model that is to run; the command gets them as :func:`vit_hub.embed` takes them."""

    @functools.wraps(command)
    def given(
        *args: Any,
        compute_options: dict[str, Any],
        resize_options: dict[str, Any],
        preprocess_options: dict[str, Any],
        source_options: dict[str, Any],
        **values: Any,
    ) -> Any:
        loading = {**compute_options, **resize_options, **source_options, "preprocessing": preprocess_options}
        return command(*args, loading_options=loading, **values)

    return compute_options(resize_options(preprocess_options(source_options(cast(_Command, given)))))


def _batch_size(ctx: click.Context, param: click.Parameter, text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a whole number from 1 on.")
    return int(text)


running_options = _together(
    "running_options",
    batch_size=click.option(
        "--batch-size",
        callback=_batch_size,
        metavar="NUMBER",
        default="auto",
        show_default=True,
        help="Images computed at a time; auto chooses for the device.",
    ),
    workers=click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Processes that read and preprocess images; 0: none, in turn with computing. By default chosen.",
    ),
    compile=compile_option(),
    runtime=click.option(
        "--runtime",
        type=click.Choice(RUNTIME_NAMES),
        metavar="RUNTIME",
        help="Compute with torch, onnxruntime or openvino, into whose form the model is exported once, or auto: the "
        "fastest of them on this machine. Default: torch; for a file of vit-hub export, its own.",
    ),
    fast_decode=click.option(
        "--fast-decode",
        is_flag=True,
        help="Let large JPEG files be shrunk while they are decoded; pixels differ a little.",
    ),
    image_column=click.option("--image-column", metavar="NAME", help="Column of parquet files with the images."),
    label_column=click.option("--label-column", metavar="NAME", help="Column of parquet files with the classes."),
)
"""Options for going through many images, as :func:`vit_hub.embed` takes them."""
test_option = click.option(
    "--test",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of embeddings, by the same model, of the images to classify.",
)


_MULTIPLES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


def _count(ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Parse a count such as 30M, 1.1B or 86567656."""
    if text is None:
        return None
    # Commas stand between thousands, never before a fraction.
    plain = text.lower().replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", text) else text.lower()
    digits = plain.rstrip("kmgb")
    try:
        found = float(digits) * _MULTIPLES[plain.removeprefix(digits)]
    except (KeyError, ValueError):
        found = math.nan
    if not 0 < found < math.inf:
        raise click.BadParameter(f"{text!r} is no number of parameters; write 30M, 1.1B or 86567656.")
    return found


def _complete_column(column: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete the values that models of the registry have in a column of their summary."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        from vit_hub.registry import COMMERCIAL, list_models
        from vit_hub.weights_manifest import summary

        values = [getattr(summary(name), column) for name in list_models()]
        every = [item for value in values for item in ([value] if isinstance(value, str) else value)]
        known = dict.fromkeys([COMMERCIAL] * (column == "license") + every)
        return [value for value in known if value.startswith(incomplete)]

    return complete


def selection_options(command: _Command) -> _Command:
    """Add conditions on models of the registry, as :func:`vit_hub.list_models` takes them."""
    options = (
        click.option(
            "--family",
            metavar="FAMILY",
            shell_complete=_complete_column("family"),
            help="Only models of one family, such as augreg.",
        ),
        click.option(
            "--license",
            metavar="LICENCE",
            shell_complete=_complete_column("license"),
            help="Only models of a licence, such as apache-2.0; commercial: of any stated licence that is an open one. "
            "(Licences with terms of their own, which may allow commercial use, are not among those.)",
        ),
        click.option(
            "--max-params",
            callback=_count,
            metavar="NUMBER",
            help="Only models with up to this many parameters, such as 30M.",
        ),
        click.option(
            "--max-gflops",
            type=click.FloatRange(min=0, min_open=True),
            metavar="NUMBER",
            help="Only models with up to this many GFLOP for one image (a multiply-add is two).",
        ),
        click.option(
            "--min-top1",
            type=click.FloatRange(0, 100),
            metavar="PERCENT",
            help="Only models with a published top-1 accuracy of at least this on ImageNet-1k.",
        ),
        click.option(
            "--format",
            metavar="FORMAT",
            shell_complete=_complete_column("formats"),
            help="Only models published in this format, such as timm.",
        ),
        click.option(
            "--image-size", type=_size, metavar="SIZE", help="Only models for images of 384 or 384x512 pixels."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command
