"""Where the project and its reference values are."""
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = ROOT/"tests"/"reference"


def told(v)->str:
    "`v` in words for the name of a test: the same in every process, without addresses"
    return re.sub(r" at 0x[0-9a-f]+", "", str(v))
