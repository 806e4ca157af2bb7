"""Access to PostgreSQL that several packages share.

Contains connections, error translation, the catalog, the payload expression, reading rows by key, and marking
changes as published. Statements that only one package needs are in that package.
"""
