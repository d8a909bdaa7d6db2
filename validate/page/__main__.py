"""python -m validate.page: see validate/page/__init__.py."""

import sys

from utils.run.errors import run_entry
from validate.page import report_page

if __name__ == "__main__":
    run_entry(lambda: report_page(*sys.argv[1:]))
