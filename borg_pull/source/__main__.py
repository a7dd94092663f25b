import sys

from borg_pull.source.main import main

sys.exit(main())
