"""The DAGs that the installed package contains, as a DAG bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.dag_processing.bundles.local import LocalDagBundle


class CacheSyncDagBundle(LocalDagBundle):
    """The folder `dags` beside this module, which the wheel contains.

    Args:
        kwargs: the bundle's name, and the other options that Airflow passes to every bundle.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=str(Path(__file__).with_name("dags")), **kwargs)
