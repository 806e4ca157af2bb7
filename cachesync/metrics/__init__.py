"""The Prometheus metrics of the library, declared in one module for each kind of work.

A process exports the metrics of the work that it does and no others: nothing is exported because a module was
imported. docs/metrics.md lists all of them.

Not here: the metrics of the HTTP server, which are in `serving`.
"""
