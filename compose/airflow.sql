-- Airflow's own database, created when PostgreSQL first starts on an empty volume.
\getenv airflow_password AIRFLOW_DB_PASSWORD

CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE DATABASE airflow OWNER airflow;
