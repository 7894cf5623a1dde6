"""Runs the device code of .cu files on a CPU. README.md says how."""
