"""Runs the whole system on one machine without containers, for development, tests and CI.

It starts PostgreSQL, Redis, Kafka, Airflow and the services as processes, and keeps their state in one
folder; `local.compose` runs the demo in containers. The tests and the benchmarks are built on this package,
which imports neither. Nothing in it runs in production.
"""
