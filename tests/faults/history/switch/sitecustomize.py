"""Disables a rule of the product; Python runs this file on startup if its directory is on the path."""

from __future__ import annotations

import os

from tests.faults.history.broken import switch_off

switch_off(os.environ["HISTORY_BREAK"])
