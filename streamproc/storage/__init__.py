"""From a URI to bytes and back: the media root, remote files, what is allowed, and where animations go."""
