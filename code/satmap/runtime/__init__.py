"""Where and how the program runs: cores, device, memory, processes and signals."""
