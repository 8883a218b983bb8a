"""The services of the stream: worker, matcher, animator, and `dev`, which runs all three."""
