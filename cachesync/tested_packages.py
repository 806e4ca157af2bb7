"""Version checks for packages whose internals are used."""

from __future__ import annotations

from importlib.metadata import version

from packaging.specifiers import SpecifierSet


def require_tested(distribution: str, tested: str) -> None:
    """Check that the installed version of a package is one whose internals were tested.

    Args:
        distribution: the name under which the package is installed.
        tested: the tested versions, as a PEP 440 specifier such as `>=8.1,<8.2`.

    Raises:
        ImportError: the installed version was not tested.
    """
    installed = version(distribution)
    if installed not in SpecifierSet(tested):
        message = (
            f"{distribution} {installed} is installed, but db-cache-sync uses its internals and was tested "
            f"with {tested} only; run `pip install '{distribution}{tested}'`"
        )
        raise ImportError(message)
