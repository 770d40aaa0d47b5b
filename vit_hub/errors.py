"""The error hierarchy of vit-hub.

Every message names the file or field at fault and, in ``hint``, what to do about it. The command prints
``message`` and ``hint`` on one line each and never a traceback (unless ``--debug``).
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DownloadError",
    "IntegrityError",
    "ModelNotFoundError",
    "SignatureError",
    "UnknownFormatError",
    "UnsafeCheckpointError",
    "UnsupportedByFormatError",
    "VitHubError",
    "first_line",
]


class VitHubError(Exception):
    """Base of every error raised on purpose by vit-hub.

    Args:
        message: what is wrong, naming the file and the field.
        hint: what the caller can do about it; appended to the message by ``str()``.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(VitHubError, ValueError):
    """A :class:`~vit_hub.model.config.ViTConfig` that contradicts itself or cannot fit the tensors."""


class UnsupportedByFormatError(VitHubError):
    """A target format that cannot express the model."""


class CheckpointError(VitHubError):
    """A checkpoint that is damaged, incomplete or not what it claims to be."""


class UnknownFormatError(CheckpointError):
    """A checkpoint whose format is not recognised."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint that can only be read by executing code from the file."""


class IntegrityError(VitHubError):
    """A file with another hash or size than the pinned one."""


class SignatureError(IntegrityError):
    """A file without a signature by a trusted key, or another file than the signed one."""


class DownloadError(VitHubError):
    """A file that no source could deliver.

    Args:
        message: what is wrong, naming the file.
        hint: the remedy.
        reason: of the message, what is true of the connection and not of this file alone; empty: nothing.
    """

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class ModelNotFoundError(VitHubError):
    """A name that is neither in the registry nor a path, a repository id or a URL."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error message, or the error's type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
