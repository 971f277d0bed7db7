"""Other servers of the same model, each as its own documents have it, run by an interpreter that has it."""
