"""Measure cost: `python scripts/benchmark.py -m model=setr attn=qkv,kv`."""

from attnseg.cli import benchmark

if __name__ == "__main__":
    benchmark()
