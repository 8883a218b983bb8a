"""The stream: the stages of `pipeline` and the core of `gallery` between Kafka topics."""
