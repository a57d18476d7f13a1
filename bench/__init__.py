"""Benchmarks of Osiris, each figure beside a comparison that is measured in the same run: `make
bench`."""
