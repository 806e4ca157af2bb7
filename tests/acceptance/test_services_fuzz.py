"""No request gets a 5xx, and every response conforms to the service's OpenAPI document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from local.service import Service

_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
    "use_after_free",
    "ensure_resource_availability",
)


def test_every_response_conforms_to_the_openapi_document(sa: Service, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("run", f"{sa.url}/openapi.json"),
        *("--checks", ",".join(_CHECKS)),
        *("--max-examples", "15", "--max-time", "50", "--continue-on-failure", "--no-color"),
        *("--generation-database", "none"),
    ]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    assert '"level":"error"' not in sa.log.read_text(encoding="utf-8")
