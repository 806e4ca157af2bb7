"""The Airflow part of db-cache-sync: sensors, triggers and operators."""
