"""The programs `cachesync` and `python -m cachesync`."""

import sys

from cachesync import __version__


def main() -> None:
    """Run the command; with a package of an untested version, exit with one line that names it."""
    try:
        from cachesync.cli.main import app  # noqa: PLC0415 - it imports the packages whose versions are checked
    except ImportError as error:
        if "--version" in sys.argv[1:]:
            print(f"cachesync {__version__}")  # noqa: T201
        sys.exit(f"cachesync: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="cachesync")


if __name__ == "__main__":
    main()
