"""Changes as Kafka messages.

Contains the message format, the producer, the topics, the settings of the connection, and error translation.
Decoded messages are processed in `stream` and `dead_letters`.
"""
