"""The whole system on one machine without containers: for a laptop, the tests and CI."""
