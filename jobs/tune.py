"""``hgrnx tune`` as a Ray job, with its arguments: ``ray job submit --working-dir . -- python jobs/tune.py``."""

import sys

from hgrnx.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["tune"]
    main()
