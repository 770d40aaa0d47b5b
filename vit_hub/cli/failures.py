"""Errors as one line, a hint and an exit status."""

from __future__ import annotations

import re

import click

from vit_hub.cli.output import Output
from vit_hub.errors import VitHubError
from vit_hub.untrusted import shorten

__all__ = ["DIFFERENT", "FAILED", "INTERRUPTED", "error_data", "report"]

FAILED = 1
DIFFERENT = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_LONG = re.compile(r"""(['"])(?:(?!\1).){250,}\1""", re.DOTALL)  # longer than most paths


def report(error: Exception, output: Output) -> int:
    """Report an error to the user and return the exit status."""
    if isinstance(error, click.Abort):
        cause = error.__cause__
        if not isinstance(cause, EOFError):
            # Who was interrupted says what goes on from there, if anything does.
            output.error({"type": "KeyboardInterrupt", "message": "interrupted", "hint": str(cause or "")})
            return INTERRUPTED
        error = cause  # click takes a library's EOFError for a closed terminal
    if output.debug:
        output.traceback(error)
    output.error(error_data(error))
    return error.exit_code if isinstance(error, click.ClickException) else FAILED


def error_data(error: Exception) -> dict[str, str]:
    """Return an error as data: ``type``, ``message`` and ``hint``, which may be empty."""
    # What is private is raised as the public error that it is a kind of.
    kind = next(name for name in (cls.__name__ for cls in type(error).__mro__) if not name.startswith("_"))
    hint = ""
    if isinstance(error, click.UsageError):
        # What was given is repeated, however long.
        message, hint = _LONG.sub(lambda found: shorten(found[0]), error.format_message()), _usage(error.ctx)
    elif isinstance(error, click.ClickException):
        message = error.format_message()
    elif isinstance(error, VitHubError):
        message, hint = error.message, error.hint
    elif isinstance(error, OSError):
        message = _system_message(error)
    elif isinstance(error, MemoryError) or _is_torch_memory(error):
        message, hint = "not enough memory", "try a smaller size or fewer images at a time"
    else:
        message = f"this is a bug: {kind}: {error}"
        hint = "run it again with --debug for the traceback, and report both"
    return {"type": kind, "message": message, "hint": hint}


def _is_torch_memory(error: Exception) -> bool:
    """Recognise torch's memory errors; it has a class of its own for full accelerators only."""
    return isinstance(error, RuntimeError) and any(
        text in str(error) for text in ("can't allocate memory", "not enough memory", "out of memory")
    )


def _usage(ctx: click.Context | None) -> str:
    if ctx is None:
        return "see vit-hub --help"
    pieces = " ".join(ctx.command.collect_usage_pieces(ctx))
    return f"usage: {ctx.command_path} {pieces}; see {ctx.command_path} --help"


def _system_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason
