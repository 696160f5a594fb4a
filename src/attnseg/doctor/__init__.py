"""Examination of this machine and installation. It needs neither torch nor any other library."""
