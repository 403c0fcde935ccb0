"""``hgrnx eval`` as a Ray job: ``ray job submit --working-dir . -- python jobs/evaluate.py ...``, with its arguments."""

import sys

from hgrnx.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["eval"]
    main()
