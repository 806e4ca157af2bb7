"""The serving tier: the services `sa` and `sb`, and the code that they share.

It contains everything that concerns HTTP: requests, validation, problem details, the OpenAPI document, health
checks, and gunicorn's configuration. It accesses PostgreSQL, Redis and Kafka only through the library.
"""
