"""What training and inference cost, measured: one file per suite of measurements."""
