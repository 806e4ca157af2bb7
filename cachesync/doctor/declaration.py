"""Examines the entities file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesync.entity import read_entities
from cachesync.errors import DeclarationError

if TYPE_CHECKING:
    from pathlib import Path

    from cachesync.doctor.finding import Part
    from cachesync.entity import Entity

_REMEDY = "correct the file (--entities, CACHESYNC_ENTITIES); `cachesync check` lists its mistakes"


def examine_declaration(part: Part, file: Path) -> dict[str, Entity]:
    """Read the entities file, and return the entities whose declaration is valid.

    Args:
        part: takes the findings.
        file: the entities file.
    """
    try:
        entities, mistakes = read_entities(file)
    except DeclarationError as error:
        part.error("declaration", str(error), _REMEDY)
        return {}
    for mistake in mistakes:
        part.error("declaration", mistake, _REMEDY)
    if not mistakes:
        part.ok("declaration", f"{file} declares {', '.join(entities)}")
    return entities
