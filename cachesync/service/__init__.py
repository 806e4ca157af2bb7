"""The part of the library that services use: lazy loads, write-through, and publishing.

A process opens one `Service` and uses its `EntityCache` objects. Independent of HTTP, and of how events are
consumed.
"""
