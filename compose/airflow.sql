-- Airflow's own database, made with the first start of an empty volume.
\getenv airflow_password AIRFLOW_DB_PASSWORD

CREATE ROLE airflow LOGIN PASSWORD :'airflow_password';
CREATE DATABASE airflow OWNER airflow;
