"""GPUs: simulated steps on a device that only has shapes, and the acceptance run of a real one."""
