"""Reconciliation: what is wrong in a service's cache, found and repaired while writes go on."""
