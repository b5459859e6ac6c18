"""What the benchmark scripts share: claims, timing, networks, and the published procedure to compare with."""
