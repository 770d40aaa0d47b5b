"""All addresses of one file on Hugging Face's hub, by the real huggingface_hub client against a local server."""

from __future__ import annotations

import pytest
from hub_process import COMMIT, REPO, Hub, hub
from huggingface_hub.utils import HFValidationError, validate_repo_id

from vit_hub.hub.names.hugging_face import hub_source

__all__ = ["hub"]  # fixture


def test_every_way_to_name_a_file_is_the_same_file(hub: Hub) -> None:
    """Among them the address of its web page, which would else be a second copy in another cache."""
    site = f"{hub.server.url}/{REPO}"
    names = [
        REPO,
        f"{REPO}@main",
        f"hf://{REPO}",
        f"hf://{REPO}@{COMMIT}/model.safetensors",
        f"hf-hub:{REPO}",
        f"{site}/resolve/main/model.safetensors",
        f"{site}/blob/{COMMIT}/model.safetensors?download=true",
    ]
    found = hub.answer("download", *names)
    assert len({item["path"] for item in found}) == 1
    assert not (hub.folder / "cache" / "files").exists()
    assert hub.weight_requests() == 1


def test_a_revision_is_asked_for(hub: Hub) -> None:
    hub.run("download", REPO, "--revision", COMMIT)
    assert all(f"/resolve/{COMMIT}/" in path for _, path in hub.server.requests if "/resolve/" in path)
    assert f"{REPO}@v9: there is no such revision" in hub.run("download", REPO, "--revision", "v9", code=1)


def test_a_dry_run_asks_nobody_and_knows_the_cache(hub: Hub) -> None:
    name = f"{REPO}@{COMMIT}"
    for cached in (False, True):
        before = len(hub.server.requests)
        [found] = hub.answer("download", name, "--dry-run")
        [source] = found["sources"]
        assert bool(source["cached"]) is cached
        assert source["address"] == f"hf://{name}"
        assert source["files"][:2] == ["model.safetensors", "model.safetensors.index.json"]
        assert len(hub.server.requests) == before
        hub.run("download", name)


def test_gated_weights_say_what_to_do(hub: Hub) -> None:
    hub.server.gated.add(REPO)
    for hub.server.refusal in (401, 403):
        shown = hub.run("download", REPO, code=1)
        for text in (f"{REPO} is gated", f"{hub.server.url}/{REPO}", "hf auth login", "HF_TOKEN"):
            assert text in shown


@pytest.mark.parametrize(
    "name",
    [
        "me/vit",
        "café/vit",
        "me/文件",
        f"{'a' * 96}/vit",
        f"{'a' * 97}/vit",
        f"me/{'a' * 97}",
        "me/vit.git",
        "a--b/vit",
        "-a/vit",
    ],
)
def test_repositories_are_those_of_huggingface_hub(name: str) -> None:
    try:
        validate_repo_id(name)
        possible = True
    except HFValidationError:
        possible = False
    assert (hub_source(name) is not None) is possible
