"""Kernel templates: each writes the LLVM IR of one parametrised loop nest."""
