import sys

if sys.argv[1:2] == ["--confined"] and len(sys.argv) == 3:
    from borg_pull.pull.confined import main as become

    sys.exit(become(sys.argv[2]))

from borg_pull.pull.main import main

sys.exit(main())
