"""Print what must be installed for the named extras, from the pyproject.toml in this folder.

python requirements.py s3,gpu
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
lines = list(project["dependencies"])
for extra in sys.argv[1].split(","):
    lines += project["optional-dependencies"][extra]
print("\n".join(lines))
