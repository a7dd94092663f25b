import sys

from borg_pull.aio.main import main

sys.exit(main())
