"""Access to PostgreSQL that several packages share.

Connecting, error translation, the catalogue, the payload expression, and rows by key live here. Statements
that only one package needs stay in that package.
"""
