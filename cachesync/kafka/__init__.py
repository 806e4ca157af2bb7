"""Changes as Kafka messages.

The message format, the producer, the topics, and the settings of the connection live here. What happens to a
decoded message does not: see `stream` and `dead_letters`.
"""
