"""Entry point: find verbs, run one, and turn whatever it raises into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import click

import vit_hub
from vit_hub.cli.failures import report
from vit_hub.cli.output import Output

__all__ = ["main"]

_PREFIX = "cmd_"
_ALIASES = {"ls": ("cache", "ls"), "rm": ("cache", "rm")}
_EPILOG = """\b
Examples:
  vit-hub list dinov2 base                  find models by name, size, licence, accuracy, ...
  vit-hub recommend --task features         choose one by published results
  vit-hub info vit-b16                      show what the registry knows about a model
  vit-hub download vit-b16                  fetch its weights and print their path
  vit-hub convert B_16.npz out/ --to hf     convert to another format
  vit-hub inspect weights.pth               recognise a file and list its contents
  vit-hub compare a.npz b_folder/           compare weights and outputs
  vit-hub check vit-b16                     certify what a model computes here
  vit-hub predict vit-b16 cat.jpg           classify an image
  vit-hub show vit-b16 cat.jpg -o b16.html  make pictures of a model
  vit-hub embed vit-b16 photos/ -o out/     compute features of many images
  vit-hub eval vit-b16 imagenet/val/        measure accuracy
  vit-hub search out/ cat.jpg               find the nearest of those images
  vit-hub push mine.safetensors me/my-vit   publish on the Hugging Face Hub, with a model card
  vit-hub lock vit-b16                      pin its files for a project
  vit-hub mirror /mnt/weights vit-b16       copy its files for machines without a network
  vit-hub verify                            re-check the hashes of cached files

\b
A MODEL or SRC is a registry name, a Hugging Face repository, a URL, or a local file or folder of any format.
Exit status: 0 success, 1 error, 2 wrong usage, 3 a failed comparison or verification, 130 interrupted.
Tab completion: vit-hub completion --install. For bug reports: vit-hub env.
ls and rm are short for cache ls and cache rm.
"""


class _VerbGroup(click.Group):
    """Group that finds its verbs by their files and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_verbs())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _verbs():
            return None
        module = importlib.import_module(f"{__package__}.{_PREFIX}{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args = [*_ALIASES.get(args[0], args[:1]), *args[1:]]
        if args[0] not in _verbs() and not args[0].startswith("-"):
            import difflib

            near = " or ".join(difflib.get_close_matches(args[0], _verbs(), n=3))
            help = f"did you mean {near}?" if near else f"commands: {', '.join(_verbs())}."
            ctx.fail(f"there is no command {args[0]!r}; {help}")
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run as click does, but report every error in one line (or JSON document) with the documented exit status."""
        given = list(sys.argv[1:] if args is None else args)
        # Known before parsing, so that wrong usage too is answered in JSON.
        output = Output(json="--json" in given)
        _write_any_file_name()
        interrupts: list[int] = []
        try:
            with warnings.catch_warnings(), _noting(interrupts):
                warnings.showwarning = lambda message, *rest, **named: output.warning(str(message))
                code = super().main(args, "vit-hub", complete_var, standalone_mode=False, **{**extra, "obj": output})
        except Exception as error:
            try:
                code = report(_as_interrupt(error) if interrupts else error, output)
            except BrokenPipeError:
                # The interpreter flushes stdout once more when it ends.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                code = 1
        sys.exit(code if isinstance(code, int) else 0)


@cache
def _verbs() -> tuple[str, ...]:
    modules = (info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(name.removeprefix(_PREFIX) for name in modules if name.startswith(_PREFIX)))


@contextlib.contextmanager
def _noting(interrupts: list[int]) -> Iterator[None]:
    """Append to the list when Ctrl-C is pressed in the ``with`` body; it raises ``KeyboardInterrupt`` as usual."""

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _as_interrupt(error: Exception) -> Exception:
    """Return an interrupt for what a library made of one, such as an import that it takes for failed."""
    if isinstance(error, click.Abort):
        return error
    found = click.Abort()
    found.__cause__ = KeyboardInterrupt()
    return found


def _write_any_file_name() -> None:
    """Write file names that are not valid text as they are, and escape what stdout cannot encode."""
    with contextlib.suppress(AttributeError, ValueError):
        unicode = sys.stdout.encoding.lower().startswith("utf")
        sys.stdout.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")  # type: ignore[union-attr]


@click.group(
    cls=_VerbGroup,
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(vit_hub.__version__, "-V", "--version", message="vit-hub %(version)s")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Any Vision Transformer checkpoint, from any framework: same bytes, same numbers, any resolution."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
