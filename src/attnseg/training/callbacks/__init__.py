"""Lightning callbacks: checkpoints that resume exactly, the history and the progress display."""
