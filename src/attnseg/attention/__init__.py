"""What is projected, and how scores mix values: pure torch, one idea per file."""
