"""The page in Airflow's web interface.

Everything that the API server runs belongs here: the endpoints, who may use them, and the files of the page.
What they show is read by `cachesync.overview`. What a user does from the page is a run of a DAG, which the
browser triggers through Airflow's own API, so that Airflow checks it, records it and protects it like a click
in its own pages.

Nothing here is imported by Airflow's other processes: it takes a second to import.
"""
