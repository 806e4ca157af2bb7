"""What a service does: lazy reads, write-through writes, publishing.

A process opens one `Service` and uses its `EntityCache` objects. Nothing here consumes changes, and nothing
here knows HTTP.
"""
