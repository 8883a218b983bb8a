"""The matcher: the pure core of `gallery`, between Kafka and the table that Faust keeps."""
