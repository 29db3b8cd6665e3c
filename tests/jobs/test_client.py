"""What the client of a cluster's jobs says for a shell, and where nothing listens. Real clusters: tests/end_to_end."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from raystage.errors import InputError
from raystage.jobs.client import Jobs


class Dashboard(http.server.BaseHTTPRequestHandler):
    """As much of one as a client asks for before its first job."""

    def do_GET(self) -> None:
        content = json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": ""}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.setenv(name, "")  # so that what the client sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t" * 64)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Dashboard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_command_for_a_shell_shows_the_token_as_this_one_did(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own commands show it only if RAY_AUTH_MODE says so."""
    assert Jobs(address).command("stop", "tiny-2") == f"RAY_AUTH_MODE=token ray job stop tiny-2 --address {address}"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert Jobs(address).command("stop", "tiny-2") == f"ray job stop tiny-2 --address {address}"


def test_where_nothing_listens_it_says_how_a_head_is_made_to(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(InputError, match=r"no Ray jobs at .* refused\); a head .* --dashboard-host=0\.0\.0\.0"):
        Jobs(f"http://127.0.0.1:{port}")
