"""The command `cachesync`.

Options, output and exit status live here; the work is done by the other packages, which do not print.
"""
