"""The peer: Debezium on Kafka Connect, and a bare sink that follows its topic."""
