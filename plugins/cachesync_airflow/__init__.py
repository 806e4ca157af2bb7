"""The Airflow part of db-cache-sync: sensors, triggers and operators.

It converts connections, parameters and results between Airflow and the library, which does the work. It is
independent of the services in `serving`.
"""
