"""Checking the versions of packages whose internals are used."""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet


def require_tested(distribution: str, tested: str) -> None:
    """Refuse a version of a package whose internals are used and have not been tested.

    Args:
        distribution: the name under which the package is installed.
        tested: the tested versions, as a PEP 440 specifier such as `>=8.1,<8.2`.

    Raises:
        ImportError: another version is installed.
    """
    installed = version(distribution)
    if installed not in SpecifierSet(tested):
        message = (
            f"{distribution} {installed} is installed, but db-cache-sync uses internals of it that were only "
            f"tested with {tested}; run `pip install '{distribution}{tested}'`"
        )
        raise ImportError(message)
