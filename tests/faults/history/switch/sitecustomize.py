"""Run by every Python whose path leads here, before anything else: switches off a rule of the product."""

from __future__ import annotations

import os

from tests.faults.history.broken import switch_off

switch_off(os.environ["HISTORY_BREAK"])
