import os

try:
    from borg_pull.source.main import main
except Exception:  # noqa: BLE001 - the interpreter's end would be 1, which says that borg ran
    os.write(2, b"borg-pull-source: cannot start: its files, or the memory for them, are lacking\n")
    os._exit(71)

# Taking the interpreter down takes 3 ms, for nothing that the kernel does not free anyway.
os._exit(main())
