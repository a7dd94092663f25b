import sys

from borg_pull.pull.main import main

sys.exit(main())
