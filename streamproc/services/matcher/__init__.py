"""The matcher: the gallery's pure core between Kafka and Faust's table."""
