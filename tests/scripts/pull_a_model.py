"""`streamproc models pull tiny`, with a manifest that has the entry given as JSON as well."""

from __future__ import annotations

import signal
import sys

from streamproc.cli import main
from streamproc.networks import manifest

# A shell starts its background jobs with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
entry = manifest.ModelEntry.model_validate_json(sys.argv[1])
extended = manifest.Manifest(format_version=1, models=(*manifest.load_manifest().models, entry))
manifest.load_manifest = lambda: extended
sys.argv = ["streamproc", "models", "pull", "tiny"]
main()
