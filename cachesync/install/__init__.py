"""Installation, upgrade and removal of the database side.

Only this package creates the tables, functions and triggers that number and log every change. It runs from
the command line; services and background work only check that the database side is installed.
"""
