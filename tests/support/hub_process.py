"""The command in a process of its own, with the real huggingface_hub client against a local server.

The client reads its settings when it is imported, so they cannot be changed within a test's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from servers import HubServer, serving
from tiny import timm_file

__all__ = ["COMMIT", "REPO", "Hub", "config_file", "hub"]

REPO = "someone/tiny-vit"
COMMIT = "c" * 40
_MAIN = "from vit_hub.cli import main; main()"


def config_file(heads: int = 3) -> bytes:
    """Return a config.json with the fields that a file in timm's names cannot tell."""
    arguments = {"num_heads": heads, "act_layer": "gelu_tanh"}
    return json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": arguments}).encode()


@dataclass
class Hub:
    """A server with one repository, and a machine that uses it.

    Attributes:
        server: has ``someone/tiny-vit`` at first.
        folder: of the machine: ``cache`` is vit-hub's, ``hf`` Hugging Face's, ``work`` the working folder.
        variables: further settings of the machine.
    """

    server: HubServer
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def command(self, *args: object, program: str = _MAIN) -> subprocess.Popen[str]:
        """Start the command, or a program that runs something before it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "VIT_HUB_"))}
        settings = {
            "HF_ENDPOINT": self.server.url,
            "HF_HOME": str(self.folder / "hf"),
            "VIT_HUB_CACHE": str(self.folder / "cache"),
            "NO_PROXY": "127.0.0.1",
        }
        (self.folder / "work").mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, args)],
            env={**kept, **settings, **self.variables},
            cwd=self.folder / "work",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: object, program: str = _MAIN, code: int = 0) -> str:
        """Return what the command prints; its exit status must be ``code``. Errors come with stderr."""
        process = self.command(*args, program=program)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        return out if code == 0 else out + err

    def answer(self, *args: object, code: int = 0) -> Any:
        """Return the JSON document that the command prints."""
        process = self.command(*args, "--json")
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, out + err
        return json.loads(out)

    def publish(self, files: Mapping[str, bytes] | None = None, commit: str = COMMIT) -> None:
        """Make a commit of the repository: weights and config, with these files added or in their place."""
        standard = {"model.safetensors": timm_file(), "config.json": config_file()}
        self.server.add_repo(REPO, {**standard, **(files or {})}, commit)

    def weight_requests(self) -> int:
        """Return the number of requests for the weights."""
        return sum(method == "GET" and path.endswith(".safetensors") for method, path in self.server.requests)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A machine that has nothing yet, and the server."""
    with serving(HubServer) as running:
        assert isinstance(running, HubServer)
        found = Hub(running, tmp_path)
        found.publish()
        yield found
