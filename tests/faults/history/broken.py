"""The product with one of its rules disabled, to show that the checker detects the consequences."""

from __future__ import annotations

from hashlib import sha1

from cachesync.slots import scripts

#: By rule: the scripts, a piece of their source, and the replacement.
EDITS = {
    # A change is written regardless of what the slot holds.
    "version-check": (
        ("change", "changes"),
        (
            "if version == current then\n            return 'repeated'\n        end\n"
            "        if version < current then\n            return 'older'\n        end\n"
            "        if content == ''"
        ),
        "if content == ''",
    ),
    # Any reader that loaded a row fills the slot, regardless of its lease and the floor.
    "lease": (
        ("fill",),
        (
            "local state, floor, token = read(KEYS[1])\n"
            "if state ~= 'lease' or token ~= ARGV[1] then\n    return 0\nend"
        ),
        "local floor = NO_FLOOR",
    ),
}


def switch_off(rule: str) -> None:
    """Load all scripts without this rule from now on, in this process."""
    edited_names, text, edited = EDITS[rule]
    load = scripts.Script.__init__

    def load_edited(script: scripts.Script, name: str) -> None:
        load(script, name)
        if name in edited_names:
            assert script.source.count(text) == 1
            script.source = script.source.replace(text, edited)
            script.sha = sha1(script.source.encode(), usedforsecurity=False).hexdigest()

    scripts.Script.__init__ = load_edited  # type: ignore[method-assign, assignment]
    scripts.script.cache_clear()
