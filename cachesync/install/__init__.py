"""The database side: checked, installed, upgraded and removed.

The tables, functions and triggers that number and log every change are made here and nowhere else. It runs
from the command line; services and background work only check that it was done.
"""
