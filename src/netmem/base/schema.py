"""What our JSON says of its form: the first key of every document is ``schema``, "netmem.NAME/VERSION".

``docs/api.md`` has the list, and says when a version goes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VERSIONS = {
    "check": 1,  # netmem check of a Python driver
    "sources": 1,  # netmem check of C sources
    "changes": 1,  # netmem check --diff, --patch, --baseline
    "drivers": 1,  # netmem check --list
    "explain": 1,
    "requirement": 1,  # netmem explain R5
    "advice": 1,  # netmem explain A5
    "leaks": 1,
    "leaks-kernel": 1,
    "report": 1,
    "show": 1,
    "show-kernel": 1,
    "recv": 1,  # each line
    "send": 1,
    "guest-test": 1,
    "guest-bench": 1,
}


def document(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with its schema in front."""
    return {"schema": f"netmem.{name}/{VERSIONS[name]}", **body}
