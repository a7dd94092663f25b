"""The only door to the kernel: capabilities, process attributes, path resolution."""
