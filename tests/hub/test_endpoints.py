"""Servers that HF_ENDPOINT names, and that want to write outside of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_fixtures import cache, server
from hub_process import REPO, Hub, hub
from servers import HubServer, Reply, Server

from vit_hub.errors import DownloadError
from vit_hub.hub.http.metadata import guard_names

__all__ = ["cache", "hub", "server"]  # fixtures


def test_an_etag_that_leads_elsewhere(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = HubServer.answer

    def answer(server: HubServer, method: str, path: str) -> Reply:
        reply = plain(server, method, path)
        return Reply(reply.body, reply.status, {**reply.headers, "X-Linked-ETag": '"../../../../evil"'})

    monkeypatch.setattr(HubServer, "answer", answer)
    shown = hub.run("download", f"hf://{REPO}@main/model.safetensors", code=1)
    assert "the server's X-Linked-ETag" in shown
    assert "HF_ENDPOINT" in shown
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("header", ["X-Repo-Commit", "ETag", "X-Linked-ETag"])
def test_names_of_the_client(server: Server, header: str) -> None:
    from huggingface_hub import get_session

    guard_names()
    guard_names()
    for value in ("../evil", "/evil", "..", "x/y", "x\\y", "C:x", "\x1b[31m", "", "a" * 300):
        for given in {value, value if header == "X-Repo-Commit" else f'"{value}"'}:
            url = server.add("/x", Reply(headers={header: given}))
            with pytest.raises(DownloadError, match=header):
                get_session().head(url)
    for value in ("c" * 40, '"5f-abc"', 'W/"0x8D9"', "d41d8cd98f00b204e9800998ecf8427e-12"):
        assert get_session().head(server.add("/x", Reply(headers={header: value}))).status_code == 200
