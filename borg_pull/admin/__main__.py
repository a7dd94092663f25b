import sys

from borg_pull.admin.main import main

sys.exit(main())
