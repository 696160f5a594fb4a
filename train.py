"""Train, validate and test: `python train.py model=setr attn=kv`, or --help for every choice."""

from attnseg.cli import train

if __name__ == "__main__":
    train()
