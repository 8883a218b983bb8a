"""Kafka: connections, records, topics, long jobs, and what a terminal does with the stream."""
