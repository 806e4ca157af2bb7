"""Dead letters: messages that could not be applied are kept, retried, parked and closed.

Requests come from the DAG `dead_letter_retry` and the command line; `DeadLetterService` carries them out.
Kafka stores the letters, and a table in PostgreSQL records what was done with them.
"""
