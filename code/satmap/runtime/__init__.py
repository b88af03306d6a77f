"""Processor cores, GPUs, memory, processes and signals."""
