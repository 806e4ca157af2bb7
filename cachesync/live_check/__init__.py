"""The live check: whether every cache has a committed change in time, seen from outside.

It reads slots as a service does, changes rows of its own, compares others with the change log and with their
rows, and knows nothing of Kafka, of the relay or of the streams. What it sees is in tables of the schema
`cachesync`, where the overview reads it. It does not repair anything.
"""
