"""Kernels compiled for AArch64 and run under QEMU; `make test-aarch64` runs these tests."""
