"""``hgrnx train`` as a Ray job: ``ray job submit --working-dir . -- python jobs/train.py ...``, with its arguments."""

import sys

from hgrnx.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["train"]
    main()
