"""Limits of time that hold on a machine of any speed."""

HANG = 600  # seconds after which what should have ended counts as hanging
