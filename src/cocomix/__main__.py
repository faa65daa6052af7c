import sys

from cocomix.cli import main

sys.exit(main())
