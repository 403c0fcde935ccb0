"""``hgrnx reproduce`` as a job: ``ray job submit --working-dir . -- python jobs/reproduce.py table2 --scale cpu``."""

import sys

from hgrnx.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["reproduce"]
    main()
