"""The services of the stream: worker, matcher, animator, and all three in one terminal."""
