"""The parameters of DAG runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import Param
from pydantic import BaseModel, ValidationError

from cachesync.errors import SettingsError
from cachesync.mistakes import did_you_mean, in_words

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from pydantic_core import ErrorDetails

_Model = TypeVar("_Model", bound=BaseModel)


def names(description: str, known: list[str]) -> Param:
    """Return a parameter for a list of names, empty by default.

    Args:
        description: the description shown in Airflow's trigger form.
        known: the names that are allowed.
    """
    return Param(
        [],
        type="array",
        items={"type": "string", "enum": known},
        examples=known,
        description=description,
    )


def validated(model: type[_Model], given: Mapping[str, Any]) -> _Model:
    """Return the parameters of a run as a model, which also rejects unknown ones.

    Airflow checks each parameter that the DAG declares, but passes on any other key of a run's configuration.

    Args:
        model: the model, which must forbid extra fields.
        given: the parameters of the run.

    Raises:
        SettingsError: some parameters are unknown or invalid; the text lists all of them in one line.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        problems = [_described(one, model.model_fields) for one in error.errors(include_url=False)]
        message = f"invalid parameters of the run: {'; '.join(problems)}"
        raise SettingsError(message) from None


def _described(error: ErrorDetails, known: Collection[str]) -> str:
    words = in_words(error["type"], error["msg"], error.get("ctx", {}))
    if not error["loc"]:
        return words.removeprefix("is invalid: ")
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        all_known = f"; the parameters are {', '.join(known)}"
        return f"{name!r} {words}{did_you_mean(name, known) or all_known}"
    return f"{name} {words}"
