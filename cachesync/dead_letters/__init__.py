"""Dead letters: messages that could not be applied, kept, retried, parked and closed.

Runs in the DAG `dead_letter_retry` and from the command line. `DeadLetterService` carries out requests; Kafka
holds the letters, and a table in PostgreSQL records what became of them.
"""
