"""Which failures of a task Airflow must not retry."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

from cachesync.errors import (
    DeclarationError,
    LetterNotFoundError,
    NotInstalledError,
    ReconcileError,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_FINAL: Final = (
    AirflowNotFoundException,  # a connection is missing
    DeclarationError,
    LetterNotFoundError,
    NotInstalledError,
    ReconcileError,
    SettingsError,
)


@contextmanager
def final_failures() -> Iterator[None]:
    """Fail the task without further attempts if another attempt could only fail in the same way.

    Raises:
        AirflowFailException: a setting, a parameter, a connection, the declaration or the installation is
            invalid or missing. The text is one line.
    """
    try:
        yield
    except _FINAL as error:
        raise AirflowFailException(str(error)) from error
