"""`streamproc worker`, which notes when each bucket is full and when its vectors are there.

The file NOTES gets a line of JSON for each: the person, both times, how many of its crops had been
embedded ahead, and how many crops of all persons were, and were chosen, so far.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from streamproc.cli import main
from streamproc.pipeline.embed import EmbedStage

NOTES = Path(os.environ["NOTES"])
real_submit = EmbedStage.submit


async def submit(self, bucket):
    """Hand the bucket to the network, and note it when the vectors come."""
    full = time.time()
    ahead = sum(bucket.crops[place] in self._vectors for place in bucket.embedded)

    def note(_vectors):
        counts = [ahead, self.crops_ahead, self.crops_ahead_used]
        with NOTES.open("a") as file:
            file.write(json.dumps([bucket.person_id, full, time.time(), *counts]) + "\n")

    vectors = await real_submit(self, bucket)
    vectors.add_done_callback(note)
    return vectors


EmbedStage.submit = submit
sys.argv[0] = "streamproc"
main()
