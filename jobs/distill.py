"""Teacher, student and twin as a Ray job: ``ray job submit --working-dir . -- python jobs/distill.py [RECIPE] ...``.

Takes the arguments of ``hgrnx distill``; the recipe ``demo`` is the default.
"""

import sys

from hgrnx.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["distill"]
    main()
