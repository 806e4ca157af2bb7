"""The command `cachesync`.

This package contains the options, the output and the exit status. The other packages do the work and do not
print.
"""
