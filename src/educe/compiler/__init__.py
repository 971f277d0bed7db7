"""The compiler: a `Model` to machine code, through LLVM."""
