"""From a URI to bytes and back: the media root, remote files, allow-lists, and animations."""
