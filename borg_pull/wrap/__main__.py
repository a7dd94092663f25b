import sys

from borg_pull.wrap.main import main

sys.exit(main())
