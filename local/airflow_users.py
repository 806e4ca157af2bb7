"""Creates Airflow's users and the role for Jenkins. Runs as a separate program, in Airflow's environment.

The users are read from standard input, as a JSON object by name. An existing user's password is updated.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder


def make(role_file: Path, users: dict[str, dict[str, str]]) -> None:
    """Create the role and the users that do not exist yet.

    Args:
        role_file: a file in the format of `airflow roles import`, which is not used because it requires that
            the DAG has already been loaded.
        users: password and role of each user, by name.
    """
    with get_application_builder() as builder:
        manager = builder.sm
        for entry in json.loads(role_file.read_text()):
            role = manager.add_role(entry["name"])
            for action in entry["action"].split(","):
                manager.add_permission_to_role(role, manager.create_permission(action, entry["resource"]))
        for name, user in users.items():
            known = manager.find_user(name)
            if known is not None:
                manager.reset_password(known.id, user["password"])
                continue
            role = manager.find_role(user["role"])
            manager.add_user(name, "Local", name, f"{name}@localhost", role, user["password"])


if __name__ == "__main__":
    make(Path(sys.argv[1]), json.load(sys.stdin))
