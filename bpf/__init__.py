"""The kernel side of Sluice, and the one door to it (loader.py). abi.py is generated from sluice.h."""
