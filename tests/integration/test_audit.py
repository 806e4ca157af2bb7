"""`make audit`: pip-audit and pip as they are installed, with data from a server of the test's own.

The real data, OSV's, has the format that the server here imitates.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Final

import pytest

from local import audit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VULNERABLE: Final = "vulnerable-example"
OSV: Final = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-1"],
    "summary": "an example",
    "affected": [
        {
            "package": {"name": VULNERABLE, "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.2"}]}],
            "versions": ["1.0"],
        }
    ],
}


class _Data(BaseHTTPRequestHandler):
    """Answers queries as OSV does, and lists the releases of packages as an index does."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vulnerable = query["package"]["name"] == VULNERABLE
        self._answer("application/json", json.dumps({"vulns": [OSV]} if vulnerable else {}))

    def do_GET(self) -> None:
        name = self.path.strip("/").rpartition("/")[2].replace("-", "_")
        files = (f"{name}-{version}-py3-none-any.whl" for version in ("1.0", "1.3"))
        self._answer("text/html", "".join(f'<a href="/files/{file}">{file}</a>' for file in files))

    def _answer(self, kind: str, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes pip-audit and pip ask the server of the test."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Data) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        use(monkeypatch, url)
        yield
        server.shutdown()


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pip-audit and pip ask a server that does not exist."""
    use(monkeypatch, "http://127.0.0.1:1")


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PIP_AUDIT_OSV_URL", f"{url}/v1/query")
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_RETRIES", "0")


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of two pins, one of them vulnerable, which replaces the project's own."""
    file = tmp_path / "requirements.txt"
    write(file, VULNERABLE, "other-example")
    monkeypatch.setattr(audit, "_REQUIREMENTS", file)
    return file


def write(file: Path, *names: str) -> None:
    file.write_text("".join(f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in names))


def installed(folder: Path, name: str, version: str) -> None:
    metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.usefixtures("data")
def test_known_vulnerability_is_named_with_the_release_that_fixes_it(
    pins: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "newer_releases", list)
    assert audit.main() == 1
    output = capsys.readouterr().out
    assert output.startswith("known vulnerabilities in 2 packages: 1\n")
    assert "vulnerable-example 1.0: PYSEC-2026-1, CVE-2026-1; fixed in 1.2\n" in output
    write(pins, "other-example")
    assert audit.main() == 0
    assert "known vulnerabilities in 1 packages: none\n" in capsys.readouterr().out


@pytest.mark.usefixtures("no_data", "pins")
def test_data_that_cannot_be_reached_is_no_clean_bill(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main() == 3
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("known vulnerabilities: NOT CHECKED, the data could not be reached: ")
    assert second.startswith("packages behind their newest release: NOT CHECKED, the package index could")


@pytest.mark.usefixtures("data")
def test_packages_behind_their_newest_release_are_listed(tmp_path: Path) -> None:
    installed(tmp_path, "old_example", "1.0")
    installed(tmp_path, "new_example", "1.3")
    assert audit.newer_releases("--path", str(tmp_path)) == ["old_example 1.0, newest 1.3"]
