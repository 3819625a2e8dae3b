"""Translation on x86-64 CPUs in a compiled library, which is optional: without it, PyTorch translates."""
