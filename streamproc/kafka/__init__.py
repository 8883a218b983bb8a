"""Everything that speaks to Kafka: connections, records, topics, long jobs, and the client at a terminal."""
