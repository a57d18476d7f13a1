"""What Osiris costs, each figure beside another side measured in the same run: `make bench`."""
