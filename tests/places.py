"""Where the project and its reference values are."""
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = ROOT/"tests"/"reference"
