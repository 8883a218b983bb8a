"""Replay: the stages of the stream in one process, with files where the stream has topics."""
