"""What `bench` measures, a module a subject; each gives ratios of times that were taken side by side in one process."""
