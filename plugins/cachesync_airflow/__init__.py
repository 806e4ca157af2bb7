"""What Airflow loads of db-cache-sync."""
